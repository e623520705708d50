/* STAND-IN for NVIDIA's libcuda.so.1: the few functions that gpuyard.box.health calls, computed by the CPU.
   $STANDIN_CUDA makes it fail: "wrong" computes one number wrong, "crash" ends the process, "hang" never comes back,
   "init" has no working driver. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is(const char *word) { const char *set = getenv("STANDIN_CUDA"); return set && !strcmp(set, word); }

int cuInit(unsigned flags) { return flags || is("init") ? 802 : 0; }
int cuGetErrorName(int code, const char **name) { *name = code == 802 ? "CUDA_ERROR_SYSTEM_NOT_READY" : "?"; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { (void)device; *size = 24ull << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); return 0; }
int cuCtxSetCurrent(void *context) { return context ? 0 : 201; }
int cuModuleLoadData(void **module, const char *image) { *module = (void *)1; return !strstr(image, ".entry check("); }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)2; return !module || strcmp(name, "check");
}
int cuMemAlloc_v2(uint64_t *address, size_t size) { *address = (uint64_t)(uintptr_t)malloc(size); return !*address; }
int cuMemFree_v2(uint64_t address) { free((void *)(uintptr_t)address); return 0; }
int cuMemGetInfo_v2(size_t *spare, size_t *total) { *spare = 64 << 20; *total = 24ull << 30; return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { memcpy(to, (void *)(uintptr_t)from, size); return 0; }
int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t size) {
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, size); return 0;
}
int cuLaunchKernel(void *function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    if (is("crash")) abort();
    if (is("hang")) for (;;) pause();
    if (!function || by * bz * ty * tz != 1 || shared || stream || extra) return 1;
    uint32_t *out = (uint32_t *)(uintptr_t)*(uint64_t *)parameters[0], count = *(uint32_t *)parameters[1];
    for (uint32_t i = 0; i < bx * tx && i < count; i++) {
        uint32_t x = i;
        float sum = 0;
        for (int k = 0; k < 256; k++) { x = x * 1664525u + 1013904223u; sum += (float)k * (float)(i & 255); }
        out[i] = x ^ (uint32_t)sum;
    }
    if (is("wrong")) out[count - 1] ^= 1;
    return 0;
}
