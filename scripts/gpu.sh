#!/usr/bin/env bash
# The proof with a GPU, in nine minutes at most: builds the plugin for the GPU that is there (else for sm_90a), checks every
# kernel, measures, and prints a table of at most 60 lines last; all that was found is in build/gpu.json. Exit code 1 when
# anything is wrong, 2 when something it needs is missing. docs/cuda.md says how to read the table.
#
#   scripts/gpu.sh                        everything
#   scripts/gpu.sh --json FILE            what was found, elsewhere
#   scripts/gpu.sh --seconds 300          in less time: what does not fit is skipped, and said
#   scripts/gpu.sh --steps "every slot"   some steps, by how their names begin, with commas between them
#   scripts/gpu.sh --built FOLDER         do not build: FOLDER holds the package genkit with its core and plugin
#   scripts/gpu.sh --record [FILE]        nothing is run: what was found goes into docs/performance.md
# PYTHON names another python3, CUDACXX an nvcc, JOBS how many compilers run at a time (16).
# All other options are those of `python -m gpu --help` in tests/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
root=$PWD
python=${PYTHON:-python3}
jobs=${JOBS:-16}
missing() { printf 'scripts/gpu.sh: %s\n' "$1" >&2; exit 2; }
say() { printf '%4d s  %s\n' "$SECONDS" "$1" >&2; }

built="" options=()
while (($#)); do
    case $1 in
    --record) PYTHONPATH=$root/python:$root/tests exec "$python" -m gpu.record "${2:-$root/build/gpu.json}" ;;
    --built) built=${2:?--built wants a folder}; shift 2 ;;
    *) options+=("$1"); shift ;;
    esac
done

command -v "$python" >/dev/null || missing "no $python; PYTHON names another"
# What the package and the checks import; with a network: pip install that.
needed="numpy typer rich safetensors tokenizers jinja2 huggingface_hub pytest"
[[ -n $built ]] || needed+=" pybind11"
lacks=$("$python" - "$needed" <<'EOF'
import importlib.util, sys
print(*(name for name in sys.argv[1].split() if importlib.util.find_spec(name) is None))
EOF
)
[[ -z $lacks ]] || missing "$python has no ${lacks// /, }: install with pip, or carry the wheels where there is no network"

if [[ -z $built ]]; then
    built=$root/build/gpu
    for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc /usr/local/cuda-*/bin/nvcc; do
        [[ -x $nvcc ]] && break
    done
    [[ -x $nvcc ]] || missing "no nvcc in PATH or /usr/local/cuda*: CUDACXX names one"
    command -v cmake >/dev/null || missing "no cmake: pip install cmake"
    say "building with $nvcc, $jobs jobs"
    mkdir -p "$root/build"
    work=$root/build/gpu-work
    generator=()
    command -v ninja >/dev/null && generator=(-G Ninja)
    {
        cmake -S "$root" -B "$work" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DSKBUILD_PROJECT_VERSION=0.1.0 \
            -DGENKIT_CUDA=ON -DGENKIT_CUDA_TARGETS=AUTO -DCMAKE_CUDA_COMPILER="$nvcc" \
            -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
            cmake --build "$work" -j "$jobs" && rm -rf "$built" && mkdir -p "$built" &&
            cp -r python/genkit "$built/genkit" && rm -f "$built"/genkit/*.so && cmake --install "$work" --prefix "$built"
    } >"$root/build/gpu-build.log" 2>&1 || {
        tail -n 20 "$root/build/gpu-build.log" >&2
        missing "the build failed; build/gpu-build.log has all of it"
    }
    say "built"
fi

# References are small products: a BLAS team for each of the checks that run side by side would spin more than it computes.
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-3} OMP_NUM_THREADS=${OMP_NUM_THREADS:-3}
PYTHONPATH=$built:$root/tests${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m gpu \
    --plugin "$built/genkit/libgenkit_cuda.so" --spent "$SECONDS" "${options[@]}"
