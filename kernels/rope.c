/* rope: rotary positions; the portable reference. The angle of a pair depends on the position alone, so its
 * cosine and sine are made once per row and shared by all heads. */
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fixed_math.h"

struct rope {
    struct team *team;
    float *x;
    const int32_t *positions;
    const float *frequency;
    int64_t heads, D, pairs_count;
    enum rope_pairs pairs;
    float magnitude;
};

static void rotate(float *a, float *b, float cosine, float sine)
{
    float x = *a, y = *b;
    *a = x * cosine - y * sine;
    *b = x * sine + y * cosine;
}

static void rope_row(const struct rope *r, float *x, const float *cosine, const float *sine)
{
    for (int64_t h = 0; h < r->heads; h++, x += r->D) {
        for (int64_t i = 0; i < r->pairs_count; i++) {
            if (r->pairs == ROPE_INTERLEAVED)
                rotate(&x[2 * i], &x[2 * i + 1], cosine[i], sine[i]);
            else
                rotate(&x[i], &x[i + r->pairs_count], cosine[i], sine[i]);
        }
    }
}

static void rope_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct rope *r = context;
    float *cosine = team_scratch(r->team, member, sizeof(float) * 2 * (size_t)r->pairs_count);
    float *sine = cosine + r->pairs_count;
    for (int64_t t = begin; t < end; t++) {
        for (int64_t i = 0; i < r->pairs_count; i++) {
            double s, c;
            fixed_sincos((double)r->positions[t] * (double)r->frequency[i], &s, &c);
            cosine[i] = (float)(c * (double)r->magnitude);
            sine[i] = (float)(s * (double)r->magnitude);
        }
        rope_row(r, r->x + t * r->heads * r->D, cosine, sine);
    }
}

void cpu_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
              const struct tensor *frequency, enum rope_pairs pairs, float magnitude)
{
    struct rope r = {.team = cpu_team(s),
                     .x = x->data,
                     .positions = positions->data,
                     .frequency = frequency->data,
                     .heads = x->dim[1],
                     .D = x->dim[2],
                     .pairs_count = frequency->dim[0],
                     .pairs = pairs,
                     .magnitude = magnitude};
    team_for(r.team, x->dim[0], 4, rope_body, &r);
}
