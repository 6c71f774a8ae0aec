# The GPU plug-in lepton_cuda.so, and what checks it. Included by the Makefile, which sets B, NVCC and PLUGIN.
#
# It is made of the .cu files and of the few helpers both sides need (errors, types, shapes), compiled in and hidden:
# the plug-in exports lepton_plugin alone. cudart is static; cuBLAS and NCCL are no link dependencies.
CUDA_CU := $(wildcard kernels/*.cu)
CUDA_OBJECTS := $(patsubst %.cu,$(B)/%.cu.o,$(CUDA_CU))
CUDA_HELPERS := $(B)/common/base.o $(patsubst %,$(B)/kernels/%.o,dtype quant quant_fit tensor)
CUDA_GENCODE ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
    -gencode arch=compute_100,code=[sm_100,compute_100]
# -fmad=false: a multiply and an add are fused where the source says fmaf and nowhere else.
NVCC_FLAGS := -std=c++17 -O3 -fmad=false -cudart static --Werror all-warnings \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror,-Wno-unused-parameter

$(B)/kernels/%.cu.o: kernels/%.cu kernels/cuda.mk
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) $(CUDA_GENCODE) -I. -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$(B)/lepton_cuda.so: $(CUDA_OBJECTS) $(CUDA_HELPERS) kernels/cuda.map
	$(Q)$(NVCC) -shared -cudart static -Xlinker --version-script=kernels/cuda.map -Xlinker -z,now -Xcompiler -static-libstdc++,-static-libgcc -o $@ \
	    $(filter %.o,$^) -ldl -lpthread -lrt

# ---- an emulated GPU: the same .cu files compiled as C++ (tests/fake_cuda), for machines without one ----------------
CXX ?= g++
HAVE_CXX := $(shell command -v $(firstword $(CXX)) 2>/dev/null)
FAKE_CUDA := $(if $(HAVE_CXX),$(B)/tests/lepton_fake_cuda.so)
FAKE_CUDA_OBJECTS := $(patsubst %.cu,$(B)/tests/fake_cuda/%.o,$(CUDA_CU)) $(B)/tests/fake_cuda/fake_cuda.o
# No sanitizers: they do not follow a program from stack to stack.
FAKE_CUDA_FLAGS := -std=c++17 -O2 -g -fPIC -ffp-contract=off -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter

$(B)/tests/fake_cuda/kernels/%.o: kernels/%.cu kernels/cuda.mk
	@mkdir -p $(@D)
	$(Q)$(CXX) $(FAKE_CUDA_FLAGS) -Itests/fake_cuda -I. -MMD -MP -c -o $@ -x c++ $<
$(B)/tests/fake_cuda/fake_cuda.o: tests/fake_cuda/fake_cuda.cc kernels/cuda.mk
	@mkdir -p $(@D)
	$(Q)$(CXX) $(FAKE_CUDA_FLAGS) -Itests/fake_cuda -I. -MMD -MP -c -o $@ $<
$(B)/tests/lepton_fake_cuda.so: $(FAKE_CUDA_OBJECTS) $(CUDA_HELPERS) kernels/cuda.map
	$(Q)$(CXX) -shared -Wl,--version-script=kernels/cuda.map -o $@ $(filter %.o,$^)
test-programs: $(FAKE_CUDA)

# ---- on a machine with a GPU: these need a C compiler and nvcc, and no other package --------------------------------
GPU_LIBS := $(LIBKERNELS) $(B)/common/base.o $(B)/common/clock.o
$(B)/tests/gpu/test_cuda: $(B)/tests/unit/kernels/test_cuda.o $(GPU_LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -lm -ldl
$(B)/tests/gpu/bench_gpu: $(B)/tests/gpu/bench_gpu.o $(GPU_LIBS)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -lm -ldl

.PHONY: gpu-check gpu-bench
gpu-check: $(PLUGIN) $(B)/tests/gpu/test_cuda ## Compare the GPU's operations with the CPU's; one line and success without a GPU
	@LEPTON_CUDA_PLUGIN=$(or $(PLUGIN),none) $(B)/tests/gpu/test_cuda --gpu-only
gpu-bench: $(PLUGIN) $(B)/tests/gpu/bench_gpu ## Measure the GPU's products beside its copy bandwidth; fails without a GPU
	@$(B)/tests/gpu/bench_gpu $(or $(PLUGIN),none)
