"""From an ONNX graph to a TensorRT plan: one strongly typed path for TensorRT 10.12 and later.

In a strongly typed network the types of the graph's tensors are law, so there are no precision
flags here: an fp16 or int8 engine comes from a graph that says so. That is the only way from
TensorRT 11 on, and it means that what is compared with ONNX Runtime is what is built.

The builder answers most failures with None or False and a line in its log, not with an exception;
every such answer becomes an `EngineError` that quotes the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nas.errors import EngineError, InputError
from nas.latency.runtimes.tensorrt_cache import TimingCacheFile
from nas.latency.runtimes.tensorrt_library import Log, trt

__all__ = ["BuildSettings", "build_plan"]

_LEVELS = range(6)
_MOST_ERRORS = 5


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How an engine is built.

    Args:
        optimization_level: 0 to 5; how long TensorRT searches for kernels. 3 is its default.
        workspace_bytes: scratch memory that a layer may use at most.
        timing_iterations: how often each kernel is timed; TensorRT's default of 1 is too noisy to
            find the same kernels twice, its command line tool uses 8.
        tf32: let fp32 layers multiply in TF32, with 10 bits of mantissa; off, fp32 means fp32.
        dla_core: deep learning accelerator to build for, with the GPU for what it cannot do; None
            builds for the GPU.

    Raises:
        InputError: a value that cannot work.
    """

    optimization_level: int = 3
    workspace_bytes: int = 2 << 30
    timing_iterations: int = 8
    tf32: bool = False
    dla_core: int | None = None

    def __post_init__(self) -> None:
        if self.optimization_level not in _LEVELS:
            raise InputError(f"optimization_level must be 0 to 5, got {self.optimization_level}.")
        if self.workspace_bytes <= 0 or self.timing_iterations < 1:
            raise InputError(
                "workspace_bytes and timing_iterations must be positive, "
                f"got {self.workspace_bytes} and {self.timing_iterations}."
            )


def build_plan(
    onnx: bytes, settings: BuildSettings, cache_file: TimingCacheFile, log: Log
) -> tuple[bytes, list[str]]:
    """Build a plan, and keep what was learnt about kernels in the timing cache.

    Args:
        onnx: the graph, with the types that the engine shall compute in.
        settings: how.
        cache_file: read before the build and written after it.
        log: where TensorRT writes.

    Returns:
        The plan, and notes on what went otherwise than it should without spoiling the plan.

    Raises:
        EngineError: the graph is not supported, or no engine could be built.
    """
    builder = _builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = _parsed(onnx, network, log)
    config = _config(builder, settings)
    attached, note = _attached_cache(config, cache_file, log)
    plan = builder.build_serialized_network(network, config)
    del parser, attached  # TensorRT holds the weights of the one, and writes into the other
    if plan is None:
        raise EngineError(
            f"TensorRT built no engine: {log.last()}.",
            "Choose another runtime, or leave out the block that has this operator.",
        )
    timings = config.get_timing_cache()
    notes = (note, cache_file.write(bytes(timings.serialize())))
    return bytes(plan), [one for one in notes if one]


def _builder(log: Log) -> Any:
    try:
        trt.init_libnvinfer_plugins(log, "")
        return trt.Builder(log)
    except TypeError as error:  # what the bindings make of a null pointer
        raise EngineError(
            f"TensorRT cannot start: {log.last()}.",
            "Check that the driver fits the CUDA version that TensorRT was installed for.",
        ) from error


def _parsed(onnx: bytes, network: Any, log: Log) -> Any:
    """Read the graph into the network; the parser, which owns the weights."""
    parser = trt.OnnxParser(network, log)
    if parser.parse(onnx):
        return parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = "; ".join(_parser_error(error) for error in errors[:_MOST_ERRORS]) or log.last()
    raise EngineError(
        f"TensorRT cannot read this graph: {reasons}.",
        "Leave out the block that has this operator, or choose another runtime.",
    )


def _parser_error(error: Any) -> str:
    code = str(error.code()).rsplit(".", 1)[-1]
    where = f"node {error.node()} {error.node_name()!r} ({error.node_operator()})"
    return f"{where}: {error.desc().strip().rstrip('.')} [{code}]"


def _config(builder: Any, settings: BuildSettings) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.builder_optimization_level = settings.optimization_level
    config.avg_timing_iterations = settings.timing_iterations
    # One stream: reproducible, and times of layers add up.
    config.max_aux_streams = 0
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
    # The audit needs the types of layers; running is not affected.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.dla_core is not None:
        _target_dla(builder, config, settings.dla_core)
    return config


def _target_dla(builder: Any, config: Any, core: int) -> None:
    if not 0 <= core < builder.num_DLA_cores:
        raise EngineError(
            f"Asked for DLA core {core}, TensorRT finds {builder.num_DLA_cores} in this device.",
            "Only Jetson Xavier and Orin have them, and not with every release of TensorRT.",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _attached_cache(config: Any, cache_file: TimingCacheFile, log: Log) -> tuple[Any, str]:
    """Attach the cache of the file, or an empty one where that does not fit, with a note."""
    content, note = cache_file.read()
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, note
    empty = config.create_timing_cache(b"")
    config.set_timing_cache(empty, ignore_mismatch=False)
    return empty, f"timing cache {cache_file.path} ignored: TensorRT refuses it: {log.last(1)}"
