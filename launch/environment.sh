# Sourced by the other scripts: makes .venv with a Python of at least 3.11 and installs
# a requirements file into it once. PYTHON chooses the interpreter, ACCELERATOR
# (cpu, cuda or tpu) the build of JAX; both are found when they are not set.

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ] && ! command -v "$PYTHON" >/dev/null 2>&1; then
    echo "error: PYTHON=$PYTHON is no program" >&2
    return 2
  fi
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    [ "$candidate" = "${PYTHON:-}" ] && break
  done
  echo "error: Python 3.11 or later is needed; set PYTHON=/path/to/python3.11" >&2
  return 2
}

# Cloud TPUs up to v4 are /dev/accel*; newer ones are VFIO devices of Google's vendor id.
has_tpu() {
  [ -e /dev/accel0 ] || { [ -e /dev/vfio/0 ] && grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor; }
}

find_accelerator() {
  if [ -n "${ACCELERATOR:-}" ]; then
    echo "$ACCELERATOR"
  elif nvidia-smi -L >/dev/null 2>&1; then
    echo cuda
  elif has_tpu; then
    echo tpu
  else
    echo cpu
  fi
}

jax_requirement() {
  local driver
  case "$1" in
    cpu) echo "jax" ;;
    tpu) echo "jax[tpu]" ;;
    cuda)
      # CUDA 13 needs driver 580; older drivers run CUDA 12.
      driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
      if [ "${driver%%.*}" -ge 580 ] 2>/dev/null; then echo "jax[cuda13]"; else echo "jax[cuda12]"; fi ;;
    *) echo "error: ACCELERATOR=$1; choose cpu, cuda or tpu" >&2; return 2 ;;
  esac
}

# install REQUIREMENTS_FILE: does nothing when the same file is installed already.
install() {
  local python accelerator jax wanted stamp=.venv/installed-$1
  python=$(find_python) || return
  accelerator=$(find_accelerator)
  jax=$(jax_requirement "$accelerator") || return
  wanted=$("$python" -V; echo "$jax"; cat requirements*.txt)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  echo "installing $1 with $jax into .venv ($("$python" -V))"
  if [ -x .venv/bin/python ] && [ "$(.venv/bin/python -V 2>&1)" != "$("$python" -V)" ]; then
    rm -rf .venv
  fi
  "$python" -m venv .venv &&
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" "$jax" &&
    echo "$wanted" >"$stamp" ||
    { echo "error: the installation failed; run the command again" >&2; return 2; }
}
