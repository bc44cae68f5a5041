/* A SIMULATION of an NVIDIA driver for tests: what libcuda, NVML and cuda-checkpoint of it have in common.
 *
 * There is no GPU. A "GPU" is a line in the file `gpus` of a folder, its memory the files in `memory/UUID` of it; a
 * process on it holds /dev/nvidia* open (nodes made by the test with the numbers of devices that CRIU cannot dump) and
 * has its "GPU memory" in those files, not in itself, until it is checkpointed.
 */
#ifndef SIMULATION_H
#define SIMULATION_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER_VARIABLE "GPU_SIMULATION"
#define FOLDER_DEFAULT "/var/lib/gpu-simulation"
#define MOST_GPUS 16

/* cuda.h's numbers */
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };
enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    OPERATING_SYSTEM = 304, ILLEGAL_STATE = 401, NOT_READY = 600, NOT_SUPPORTED = 801
};
enum { VERB_NONE, VERB_STATE, VERB_LOCK, VERB_CHECKPOINT, VERB_RESTORE, VERB_UNLOCK };
static const char *const VERBS[] = {"none", "state", "lock", "checkpoint", "restore", "unlock"};

/* The page through which a process is told what to do, at the same address in each. Only its own thread acts on it, so
 * a frozen or stopped process answers nobody, as with the real driver. */
#define PAGE_ADDRESS 0x7e5100000000UL
#define PAGE_MAGIC "GPU-SIMULATION-1"
struct page {
    char magic[16];
    int owner; /* PID in its own namespace: a forked child has the page, but is not its owner */
    int tid;
    volatile uint32_t request, done; /* numbers: the last asked for, the last answered */
    int verb, timeout_ms, result, state;
    uint32_t pair_count;
    uint8_t pairs[MOST_GPUS][2][16];
};

struct gpu {
    char uuid[48], model[96];
    uint8_t raw[16];
    uint64_t memory;
    int minor, mig, persistence;
};

struct node {
    char driver[32];
    int cuda; /* 13000 */
    int count;
    struct gpu gpus[MOST_GPUS]; /* in NVML's order; CUDA's is the reverse, so that nobody takes one for the other */
};

static inline const char *folder(void) {
    const char *named = getenv(FOLDER_VARIABLE);
    return named && *named ? named : FOLDER_DEFAULT;
}

static inline void raw_uuid(const char *text, uint8_t *raw) {
    int at = 0;
    for (text += 4; *text && at < 32; text++) {
        int digit = *text >= '0' && *text <= '9' ? *text - '0' : *text >= 'a' && *text <= 'f' ? *text - 'a' + 10 : -1;
        if (digit < 0) continue;
        raw[at / 2] = at % 2 ? raw[at / 2] | digit : digit << 4;
        at++;
    }
}

/* `gpus`: "driver VERSION CUDA", then "UUID|MODEL|BYTES|MINOR|MIG|PERSISTENCE" for each. 0 if it can be read. */
static inline int read_node(struct node *node) {
    char path[512], line[512];
    memset(node, 0, sizeof *node);
    snprintf(path, sizeof path, "%s/gpus", folder());
    FILE *file = fopen(path, "re");
    if (!file) return -1;
    while (fgets(line, sizeof line, file)) {
        struct gpu *gpu = &node->gpus[node->count];
        unsigned long long memory;
        if (sscanf(line, "driver %31s %d", node->driver, &node->cuda) == 2) continue;
        if (node->count < MOST_GPUS && sscanf(line, "%47[^|]|%95[^|]|%llu|%d|%d|%d", gpu->uuid, gpu->model, &memory,
                                              &gpu->minor, &gpu->mig, &gpu->persistence) == 6) {
            gpu->memory = memory;
            raw_uuid(gpu->uuid, gpu->raw);
            node->count++;
        }
    }
    fclose(file);
    return 0;
}

/* Bytes on a GPU, of one process (its PID as its own namespace `space` has it) or of all (0). A file in its memory is
 * named PID.NAMESPACE.NUMBER and locked for as long as its process lives: what nobody locks any more is free. */
static inline uint64_t used_of(const char *uuid, int inner, unsigned long space) {
    char path[512];
    uint64_t total = 0;
    snprintf(path, sizeof path, "%s/memory/%s", folder(), uuid);
    DIR *memory = opendir(path);
    struct dirent *entry;
    struct stat status;
    while (memory && (entry = readdir(memory))) {
        int pid, number;
        unsigned long home;
        if (sscanf(entry->d_name, "%d.%lu.%d", &pid, &home, &number) != 3) continue;
        if (inner && (pid != inner || home != space)) continue;
        int fd = openat(dirfd(memory), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) && !fstat(fd, &status)) total += status.st_size;
        close(fd);
    }
    if (memory) closedir(memory);
    return total;
}

#endif
