"""One job in many processes: who they are, joining, agreeing, leaving.

A process learns which one it is from its environment, the first of these that is there:

1. SFRIK_COORDINATOR=HOST:PORT, SFRIK_PROCESS_COUNT=N and SFRIK_PROCESS_INDEX=0 … N-1:
   all three, or none. HOST is that of process 0, which listens on PORT.
   SFRIK_BIND=HOST narrows where it listens; 127.0.0.1 and localhost as HOST of the
   coordinator listen on the loopback alone, all others on every interface.
2. A SLURM step of several tasks (`srun`), by SLURM_PROCID, SLURM_NTASKS and what else
   jax reads.
3. A Cloud TPU slice, by TPU_WORKER_HOSTNAMES or the metadata server, as jax has it.
4. A Kubernetes JobSet or indexed Job, by JOB_COMPLETION_INDEX; jax asks the cluster for
   the rest, for which it needs the package `kubernetes`. Without it, set the three
   variables of 1 in the manifest.

SFRIK_PORT replaces the port that jax chooses in 2 to 4. One process alone is not
joined: an interactive shell inside an allocation runs as everywhere.
"""
