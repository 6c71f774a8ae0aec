/* loss.cu: the negative log likelihood of target tokens, on the GPU: one block a row, in double; thread i
 * adds the elements i, i + 256, ... in ascending order, then the threads' sums are folded in one tree. */
#include "kernels/cuda.cuh"

#define THREADS 256

static __global__ void token_loss_kernel(float *nll, const float *logits, const int32_t *targets, int64_t V)
{
    __shared__ float room[THREADS];
    __shared__ double sums[THREADS];
    const float *row = logits + blockIdx.x * V;
    int64_t target = targets[blockIdx.x];
    float highest = -INFINITY;
    double sum = 0;
    if (target < 0 || target >= V)
        __trap();
    for (int64_t i = threadIdx.x; i < V; i += THREADS)
        highest = fmaxf(highest, row[i]);
    highest = cuda_block_max<THREADS>(room, highest);
    for (int64_t i = threadIdx.x; i < V; i += THREADS)
        sum += exp((double)row[i] - (double)highest);
    sum = cuda_block_sum<THREADS>(sums, sum);
    if (threadIdx.x == 0)
        nll[blockIdx.x] = (float)(log(sum) + (double)highest - (double)row[target]);
}

void cuda_token_loss(struct stream *s, struct tensor *nll, const struct tensor *logits,
                     const struct tensor *targets)
{
    cuda_launch(s, "token_loss", token_loss_kernel, dim3((unsigned)nll->dim[0]), dim3(THREADS),
                (float *)nll->data, (const float *)logits->data, (const int32_t *)targets->data,
                logits->dim[1]);
}
