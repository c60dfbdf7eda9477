"""A TensorRT that computes with ONNX Runtime on the CPU, and fails where `script` says so.

It is for what the runtime makes of TensorRT's answers, and says nothing about TensorRT: names and
arguments are checked with the real bindings. Its plans are ONNX graphs.
"""
# ruff: noqa: ARG002, ARG005 - the parameters are TensorRT's

import ctypes
import json
from enum import IntEnum
from types import SimpleNamespace as Values

import numpy as np
import onnx
import onnxruntime


class _Enum:
    def __getattr__(self, member):
        return member


__version__ = "10.16.1.11"
script = Values()
Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
NetworkDefinitionCreationFlag = IntEnum("Flag", "EXPLICIT_BATCH STRONGLY_TYPED", start=0)
DataType = TensorIOMode = BuilderFlag = MemoryPoolType = DeviceType = _Enum()
HardwareCompatibilityLevel = ProfilingVerbosity = LayerInformationFormat = _Enum()
ILogger, IProfiler = type("ILogger", (), {"Severity": Severity}), type("IProfiler", (), {})
_TYPES = {"tensor(float)": ("FLOAT", np.float32), "tensor(float16)": ("HALF", np.float16)}


def reset():
    script.__dict__.update(driver=True, parser_errors=(), builds=True, fits=True, dla_cores=0)
    script.__dict__.update(loads=True, memory=True, accepts=True, starts=True, inspector=None)


def init_libnvinfer_plugins(logger, namespace):
    return True


class Builder:
    def __init__(self, logger):
        if not script.driver:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger, self.num_DLA_cores = logger, script.dla_cores

    def create_network(self, flags):
        return Values(flags=flags)

    def create_builder_config(self):
        script.flags, script.pools = {"TF32"}, {}
        config = Values(set_flag=script.flags.add, clear_flag=script.flags.discard)
        config.set_memory_pool_limit = script.pools.__setitem__
        config.create_timing_cache = lambda content: Values(serialize=lambda: content + b"+")
        config.set_timing_cache = lambda cache, ignore_mismatch: (
            setattr(config, "get_timing_cache", lambda: cache) or script.fits
        )
        script.config = config
        return config

    def build_serialized_network(self, network, config):
        self.logger.log(Severity.INFO, "a kernel was tried")
        self.logger.log(Severity.ERROR, "Could not find any implementation for node X")
        script.network = network
        return network.onnx if script.builds else None


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, [*script.parser_errors]

    def parse(self, content):
        self.network.onnx = content
        nodes = enumerate(onnx.load_from_string(content).graph.node)
        self.errors += [_parser_error(index, node) for index, node in nodes if node.domain]
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]


def _parser_error(index, node):
    said = {"node": index, "node_name": node.name, "node_operator": node.op_type}
    said |= {"desc": "Plugin not found", "code": "ErrorCode.UNSUPPORTED_NODE"}
    return Values(**{name: lambda value=value: value for name, value in said.items()})


def Runtime(logger):
    return Values(deserialize_cuda_engine=lambda plan: _engine(plan) if script.loads else None)


def _engine(plan):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
    ports = {one.name: one for one in [*session.get_inputs(), *session.get_outputs()]}
    engine = Values(device_memory_size_v2=3 << 20, num_aux_streams=0, num_io_tensors=len(ports))
    engine.serialize = lambda: plan
    engine.get_tensor_name = lambda index: list(ports)[index]
    engine.get_tensor_shape = lambda name: ports[name].shape
    engine.get_tensor_dtype = lambda name: _TYPES[ports[name].type][0]
    engine.get_tensor_mode = lambda name: "INPUT" if name == next(iter(ports)) else "OUTPUT"
    engine.create_execution_context = lambda: Context(session, ports) if script.memory else None
    word = "Int8" if b"QuantizeLinear" in plan else "Half" if b"Cast" in plan else "Float"
    layers = {"Layers": [{"LayerType": "gemm", "Inputs": [{"Format/Datatype": word}]}]}
    text = script.inspector or json.dumps(layers)
    engine.create_engine_inspector = lambda: Values(get_engine_information=lambda kind: text)
    return engine


class Context:
    def __init__(self, session, ports):
        self.session, self.ports, self.memory, self.profiler = session, ports, {}, None

    def set_tensor_address(self, name, memory):
        kind, shape = np.dtype(_TYPES[self.ports[name].type][1]), self.ports[name].shape
        raw = (ctypes.c_byte * (int(np.prod(shape)) * kind.itemsize)).from_address(memory)
        self.memory[name] = np.frombuffer(raw, kind).reshape(shape)
        return script.accepts

    def execute_async_v3(self, stream):
        images, *outputs = self.memory
        results = self.session.run(None, {images: self.memory[images]})
        for name, value in zip(outputs, results, strict=True):
            self.memory[name][...] = value
        if self.profiler:
            self.profiler.report_layer_time("conv", 0.25)
        return script.starts
