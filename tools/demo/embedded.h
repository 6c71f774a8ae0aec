/* embedded: the demo model inside the program, so that `lepton run demo` works on a machine with nothing but
 * the build. The bytes are tools/demo/lepton-demo.gguf, put in by embedded.S. */
#ifndef LEPTON_TOOLS_DEMO_EMBEDDED_H
#define LEPTON_TOOLS_DEMO_EMBEDDED_H

#include <stddef.h>
#include <stdint.h>

extern const uint8_t embedded_model[], embedded_model_end[];

static inline size_t embedded_model_bytes(void)
{
    return (size_t)(embedded_model_end - embedded_model);
}

#endif
