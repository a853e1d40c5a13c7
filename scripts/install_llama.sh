#!/usr/bin/env bash
# Installs llama-cpp-python into the environment of the Python that is named: install_llama.sh .venv/bin/python
# With an NVIDIA driver it gets CUDA: the prebuilt wheel for the driver's CUDA version, or else, where there is nvcc, a
# build from source. pip's cache of built wheels ignores CMAKE_ARGS, so a build for the GPU neither uses nor fills it.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$1
requirement=$(grep -o 'llama-cpp-python==[0-9.]*' pyproject.toml)
wheels=${LLAMA_WHEELS:-https://abetlen.github.io/llama-cpp-python/whl}
options="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$PWD/scripts/llama_build.cmake ${LLAMA_CMAKE_ARGS:-}"
CMAKE_BUILD_PARALLEL_LEVEL=$(getconf _NPROCESSORS_ONLN)
export CMAKE_BUILD_PARALLEL_LEVEL

# The newest index of llama-cpp-python that is not newer than the driver; torch brings libraries of CUDA 13.0, not 13.2.
index_for() { # 13.1
  local driver=${1/./} name
  for name in 130 125 124 123 122 121 118; do
    if ((driver >= name)); then
      echo "$wheels/cu$name"
      return
    fi
  done
}

# Replaces a CPU build of the same version, which pip alone would keep; then installs what it depends on.
install() {
  "$python" -m pip install --force-reinstall --no-deps "$@" "$requirement" && "$python" -m pip install "$requirement"
}

# Whether this version can be imported and supports the GPU. Its CUDA wheels need libraries that come with torch.
works() {
  local libraries
  libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib") + "/nvidia")')
  LD_LIBRARY_PATH=$(printf '%s:' "$libraries"/*/lib) \
    "$python" - "${requirement#*==}" << 'PROGRAM'
import llama_cpp, sys
sys.exit(llama_cpp.__version__ != sys.argv[1] or not llama_cpp.llama_supports_gpu_offload())
PROGRAM
}

cuda=$(nvidia-smi 2> /dev/null | grep -oE 'CUDA[A-Za-z ]* Version *: *[0-9]+\.[0-9]+' | grep -oE '[0-9.]+$' || true)
if [[ -z $cuda ]]; then
  CMAKE_ARGS=$options "$python" -m pip install "$requirement"
  exit
fi

if works 2> /dev/null; then
  echo "llama.cpp supports the GPU: nothing to install"
  exit
fi
index=$(index_for "$cuda")
if [[ -n $index ]] && install --only-binary llama-cpp-python --extra-index-url "$index" && works; then
  exit
fi

nvcc=$(command -v nvcc || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" || true)
if [[ -n $nvcc ]]; then
  CUDACXX=$nvcc CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native $options" \
    install --no-binary llama-cpp-python --no-cache-dir
else
  CMAKE_ARGS=$options install
  echo "llama.cpp will not use the GPU: no prebuilt wheel for CUDA $cuda could be installed from ${index:-$wheels}," \
    "and there is no nvcc: install the CUDA toolkit, then run \`make llama\`" >&2
fi
