#!/usr/bin/env bash
# Builds the TensorRT engine on this board. An engine fits one TensorRT on one GPU, so this is handed over, not an engine.
#   ./build.sh                 FP16
#   ./build.sh --fp32          for comparing
#   ./build.sh --int8          after calibration/calibrate.py
#   ./build.sh --dla 0         on DLA core 0, what it cannot do on the GPU
#   ./build.sh --profile       time of every layer, to engines/*.profile.json
#   ./build.sh --dry-run       only print the line
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# What follows belongs to this model and this board.
MODEL=model.onnx
TARGET=jetson-xavier-nx
TENSORRT=8.5.2
WORKSPACE_MIB=2048
DLA_CORES=2
SHAPES=() # of inputs with free sizes: --minShapes=... --optShapes=... --maxShapes=...

die() {
  echo "build.sh: $*" >&2
  exit 1
}

precision=fp16
dla=
profile=
dry_run=
while (($#)); do
  case $1 in
    --fp32 | --fp16 | --int8) precision=${1#--} ;;
    --dla)
      [[ ${2:-} =~ ^[0-9]+$ ]] || die "--dla needs the number of a core"
      dla=$2
      shift
      ;;
    --profile) profile=yes ;;
    --dry-run) dry_run=yes ;;
    --workspace)
      [[ ${2:-} =~ ^[0-9]+$ ]] || die "--workspace needs MiB"
      WORKSPACE_MIB=$2
      shift
      ;;
    -h | --help)
      sed -n '2,8p' "${BASH_SOURCE[0]##*/}"
      exit 0
      ;;
    *) die "unknown option $1 (--help lists them)" ;;
  esac
  shift
done

[[ -f $MODEL ]] || die "$MODEL is not here"
engine=engines/${MODEL%.onnx}.$precision
line=("--onnx=$MODEL" "--memPoolSize=workspace:$WORKSPACE_MIB" --timingCacheFile=engines/timing.cache)
case $precision in
  fp16) line+=(--fp16) ;;
  int8)
    # FP16 as well: what has no INT8 kernel then runs in FP16 instead of FP32.
    line+=(--int8 --fp16)
    if ! grep -q QuantizeLinear "$MODEL"; then
      [[ -f calibration/model.cache || -n $dry_run ]] || die "first: python3 calibration/calibrate.py"
      line+=(--calib=calibration/model.cache)
    fi
    ;;
esac
if [[ -n $dla ]]; then
  ((DLA_CORES > 0)) || die "$TARGET has no DLA"
  ((dla < DLA_CORES)) || die "$TARGET has $DLA_CORES DLA cores, the last is $((DLA_CORES - 1))"
  [[ $precision != fp32 ]] || die "a DLA computes in FP16 or INT8"
  line+=("--useDLACore=$dla" --allowGPUFallback)
  engine+=.dla$dla
fi
if [[ -n $profile ]]; then
  line+=(--separateProfileRun --dumpProfile "--exportProfile=$engine.profile.json" --profilingVerbosity=detailed
    "--exportLayerInfo=$engine.layers.json")
else
  line+=(--useCudaGraph)
fi
line+=(${SHAPES[@]+"${SHAPES[@]}"} "--saveEngine=$engine.engine")

trtexec=$(command -v trtexec || true)
[[ -n $trtexec ]] || trtexec=/usr/src/tensorrt/bin/trtexec
if [[ -n $dry_run ]]; then
  printf '%s' "$trtexec"
  printf ' %q' "${line[@]}"
  echo
  exit 0
fi
[[ -x $trtexec ]] || die "trtexec is not found: it comes with TensorRT $TENSORRT (JetPack puts it in /usr/src/tensorrt/bin)"
mkdir -p engines
"$trtexec" "${line[@]}" 2>&1 | tee "$engine.log"
echo "built: $engine.engine; now: python3 check.py"
