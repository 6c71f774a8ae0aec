# The GPU plug-in lepton_cuda.so, and what checks it. Included by the Makefile, which sets B, NVCC and PLUGIN.
#
# It is made of the .cu files and of the few helpers both sides need (errors, types, shapes), compiled in and hidden:
# the plug-in exports lepton_plugin alone. cudart is static; cuBLAS and NCCL are no link dependencies.
CUDA_CU := $(wildcard kernels/*.cu)
CUDA_OBJECTS := $(patsubst %.cu,$(B)/%.cu.o,$(CUDA_CU))
CUDA_HELPERS := $(B)/common/base.o $(B)/kernels/dtype.o $(B)/kernels/tensor.o
CUDA_GENCODE ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
    -gencode arch=compute_100,code=[sm_100,compute_100]
# -fmad=false: a multiply and an add are fused where the source says fmaf and nowhere else.
NVCC_FLAGS := -std=c++17 -O3 -fmad=false -cudart static --Werror all-warnings \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror,-Wno-unused-parameter

$(B)/kernels/%.cu.o: kernels/%.cu kernels/cuda.mk
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) $(CUDA_GENCODE) -I. -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$(B)/lepton_cuda.so: $(CUDA_OBJECTS) $(CUDA_HELPERS) kernels/cuda.map
	$(NVCC) -shared -cudart static -Xlinker --version-script=kernels/cuda.map -Xlinker -z,now -Xcompiler -static-libstdc++,-static-libgcc -o $@ \
	    $(filter %.o,$^) -ldl -lpthread -lrt
