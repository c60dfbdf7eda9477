/* Everything that TensorRT's Python bindings need of its libraries to be imported. Compiled three
 * times, as libnvinfer, libnvinfer_plugin and libnvonnxparser; nothing can be built or run with it:
 * every factory answers with a null pointer, as the real ones do without a driver. */

#define FACTORY(name) void *name(void) { return 0; }

FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(getBuilderPluginRegistry)
FACTORY(getPluginRegistry)

int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 1; }
