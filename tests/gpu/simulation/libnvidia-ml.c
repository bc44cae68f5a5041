/* The simulation's libnvidia-ml.so.1, as far as pynvml is asked by us: see simulation.h. */
#define _GNU_SOURCE
#include "simulation.h"

#define EXPORT __attribute__((visibility("default")))
enum { ERROR_UNINITIALIZED = 1, ERROR_NOT_SUPPORTED = 3, ERROR_INSUFFICIENT_SIZE = 7 };

static struct node node;

struct memory { unsigned long long total, free, used; };
struct memory2 { unsigned version; unsigned long long total, reserved, free, used; };
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

EXPORT int nvmlInitWithFlags(unsigned flags) { return (void)flags, read_node(&node) ? ERROR_UNINITIALIZED : 0; }
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) { return 0; }
EXPORT const char *nvmlErrorString(int result) { return result == ERROR_NOT_SUPPORTED ? "Not Supported" : "simulated"; }
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned size) { return snprintf(text, size, "%s", node.driver), 0; }
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { return *count = node.count, 0; }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **gpu) { return *gpu = &node.gpus[index], 0; }
EXPORT int nvmlDeviceGetUUID(struct gpu *gpu, char *text, unsigned size) { return snprintf(text, size, "%s", gpu->uuid), 0; }
EXPORT int nvmlDeviceGetName(struct gpu *gpu, char *text, unsigned size) { return snprintf(text, size, "%s", gpu->model), 0; }
EXPORT int nvmlDeviceGetMinorNumber(struct gpu *gpu, unsigned *minor) { return *minor = gpu->minor, 0; }
EXPORT int nvmlDeviceGetPersistenceMode(struct gpu *gpu, unsigned *mode) { return *mode = gpu->persistence, 0; }
EXPORT int nvmlDeviceGetMigMode(struct gpu *gpu, unsigned *current, unsigned *pending) {
    return *current = *pending = gpu->mig, 0;
}

EXPORT int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory *memory) {
    memory->total = gpu->memory;
    memory->used = used_of(gpu->uuid, 0, 0);
    memory->free = memory->total - memory->used;
    return 0;
}
EXPORT int nvmlDeviceGetMemoryInfo_v2(struct gpu *gpu, struct memory2 *memory) {
    struct memory plain;
    nvmlDeviceGetMemoryInfo(gpu, &plain);
    memory->total = plain.total, memory->free = plain.free, memory->used = plain.used, memory->reserved = 0;
    return 0;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *gpu, unsigned *count, struct process *rows) {
    unsigned room = *count, found = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
        char path[300], line[256];
        int pid = atoi(entry->d_name), inner = 0;
        struct stat status;
        if (!pid) continue;
        snprintf(path, sizeof path, "/proc/%d/ns/pid", pid);
        if (stat(path, &status)) continue;
        snprintf(path, sizeof path, "/proc/%d/status", pid);
        FILE *file = fopen(path, "re");
        while (file && fgets(line, sizeof line, file))
            if (!strncmp(line, "NSpid:", 6)) inner = atoi(strrchr(line, '\t') + 1);
        if (file) fclose(file);
        unsigned long long bytes = inner ? used_of(gpu->uuid, inner, status.st_ino) : 0;
        if (!bytes) continue;
        if (found < room && rows) rows[found] = (struct process){pid, bytes, 0, 0};
        found++;
    }
    if (proc) closedir(proc);
    *count = found;
    return found > room ? ERROR_INSUFFICIENT_SIZE : 0;
}
EXPORT int nvmlDeviceGetMPSComputeRunningProcesses_v3(struct gpu *gpu, unsigned *count, struct process *rows) {
    return (void)gpu, (void)rows, *count = 0, 0;
}
