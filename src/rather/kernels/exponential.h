#include <stdint.h>
#include <string.h>

/* 2^n times a polynomial, since a compiler makes vectors of this and not of expf. 12582912 is 1.5 * 2^23: adding it rounds. */
static inline float exponential(float x) {
    x = x < -88 ? -88 : x;
    x = x > 89 ? 89 : x;
    float n = x * 1.44269504f + 12582912 - 12582912, f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1 + f * (1 + f * (0.5f + f * (1.6666667e-1f + f * (4.1666667e-2f + f * (8.3333333e-3f + f * 1.3888889e-3f)))));
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}
