/* The simulation's libcuda.so.1: see simulation.h. Compiled with -DNO_CHECKPOINT it is a driver older than 570. */
#define _GNU_SOURCE
#include "simulation.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>

#define MOST_ALLOCATIONS 4096
#define ID_SHIFT 40 /* a device pointer is the number of its allocation and an offset */
#define OFFSET(pointer) ((pointer) & ((1UL << ID_SHIFT) - 1))

static struct node node;
static struct gpu *seen[MOST_GPUS]; /* as this process sees them, in CUDA's order */
static int seen_count, initialised, managed;
static struct page *page;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER;

static struct allocation {
    uint64_t size;
    int used, gpu, fd; /* index into `seen`; the file that is its memory */
    char *host;    /* where its bytes are while it is checkpointed */
} allocations[MOST_ALLOCATIONS];

static int devices[MOST_GPUS + 1], device_count;
static void *mapping;

static void nap(int ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&time, &time) && errno == EINTR) {}
}

/* --- the device --- */

static void close_devices(void) {
    while (device_count) close(devices[--device_count]);
    if (mapping) munmap(mapping, 4096);
    mapping = NULL;
}

static int open_devices(void) {
    int fd = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
    if (fd < 0) return NO_DEVICE;
    devices[device_count++] = fd;
    DIR *dev = opendir("/dev");
    struct dirent *entry;
    int index, found = 0;
    char rest;
    while (dev && (entry = readdir(dev))) {
        if (sscanf(entry->d_name, "nvidia%d%c", &index, &rest) != 1) continue;
        fd = openat(dirfd(dev), entry->d_name, O_RDWR | O_CLOEXEC);
        if (fd < 0) continue;
        devices[device_count++] = fd;
        found++;
    }
    if (dev) closedir(dev);
    fd = open("/dev/nvidia-uvm", O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        mapping = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        if (mapping == MAP_FAILED) mapping = NULL;
        close(fd);
    }
    if (!found) close_devices();
    return found ? SUCCESS : NO_DEVICE;
}

static int is_here(const struct gpu *gpu) {
    for (int at = 0; at < device_count; at++) {
        struct stat status;
        if (!fstat(devices[at], &status) && at > 0 && (int)minor(status.st_rdev) == gpu->minor) return 1;
    }
    return 0;
}

static void look(void) {
    seen_count = 0;
    for (int at = node.count - 1; at >= 0; at--)
        if (is_here(&node.gpus[at])) seen[seen_count++] = &node.gpus[at];
}

/* --- its memory --- */

static void file_of(int id, char *path, size_t size) {
    struct stat status;
    if (stat("/proc/self/ns/pid", &status)) status.st_ino = 0;
    snprintf(path, size, "%s/memory/%s/%d.%lu.%d", folder(), seen[allocations[id].gpu]->uuid, page->owner,
             (unsigned long)status.st_ino, id);
}

static int make(int id) {
    char path[512];
    struct allocation *one = &allocations[id];
    const struct gpu *gpu = seen[one->gpu];
    if (used_of(gpu->uuid, 0, 0) + one->size > gpu->memory) return OUT_OF_MEMORY;
    file_of(id, path, sizeof path);
    one->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (one->fd < 0) return OPERATING_SYSTEM;
    return flock(one->fd, LOCK_SH) || ftruncate(one->fd, one->size) ? OPERATING_SYSTEM : SUCCESS;
}

static void drop(int id) {
    char path[512];
    file_of(id, path, sizeof path);
    unlink(path);
    close(allocations[id].fd);
}

static int move(int id, uint64_t offset, char *host, uint64_t size, int out) {
    if (id <= 0 || id >= MOST_ALLOCATIONS || !allocations[id].used) return INVALID_VALUE;
    while (size) {
        int fd = allocations[id].fd;
        ssize_t done = out ? pread(fd, host, size, offset) : pwrite(fd, host, size, offset);
        if (done <= 0) break;
        host += done, offset += done, size -= done;
    }
    return size ? OPERATING_SYSTEM : SUCCESS;
}

/* --- what it is told to do wrong: the file `faults`, lines "VERB WHAT [PID]"; WHAT: a number, hang, die, slow=MS --- */

#define HANG (-1) /* until the line is gone */
static int fault(const char *verb) {
    char path[512], line[128], name[32], what[32];
    snprintf(path, sizeof path, "%s/faults", folder());
    FILE *file = fopen(path, "re");
    int result = SUCCESS;
    while (file && fgets(line, sizeof line, file)) {
        int pid = 0;
        if (sscanf(line, "%31s %31s %d", name, what, &pid) < 2 || strcmp(name, verb) || (pid && pid != page->owner)) continue;
        if (!strcmp(what, "die")) raise(SIGKILL);
        if (!strncmp(what, "slow=", 5)) nap(atoi(what + 5));
        else result = strcmp(what, "hang") ? atoi(what) : HANG;
    }
    if (file) fclose(file);
    return result;
}

/* --- the verbs, in the process's own thread --- */

static int checkpoint(void) {
    if (managed) return NOT_SUPPORTED;
    for (int id = 0; id < MOST_ALLOCATIONS; id++) {
        struct allocation *one = &allocations[id];
        if (!one->used) continue;
        one->host = mmap(NULL, one->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (one->host == MAP_FAILED || move(id, 0, one->host, one->size, 1)) return OUT_OF_MEMORY;
    }
    for (int id = 0; id < MOST_ALLOCATIONS; id++)
        if (allocations[id].used) drop(id);
    close_devices();
    return SUCCESS;
}

static int restore(void) {
    uint8_t wanted[MOST_GPUS][16];
    struct node live;
    if (read_node(&live)) return NO_DEVICE;
    for (int at = 0; at < seen_count; at++) {
        uint32_t pair = 0;
        memcpy(wanted[at], seen[at]->raw, 16);
        while (pair < page->pair_count && memcmp(page->pairs[pair][0], seen[at]->raw, 16)) pair++;
        if (pair < page->pair_count) memcpy(wanted[at], page->pairs[pair][1], 16);
        else if (page->pair_count) return INVALID_VALUE; /* a map must name every GPU */
    }
    char models[MOST_GPUS][96];
    for (int at = 0; at < seen_count; at++) strcpy(models[at], seen[at]->model);
    int result = open_devices();
    if (result) return result;
    struct gpu *found[MOST_GPUS];
    for (int at = 0; at < seen_count; at++) {
        found[at] = NULL;
        for (int other = 0; other < live.count; other++)
            if (!memcmp(live.gpus[other].raw, wanted[at], 16)) found[at] = &live.gpus[other];
        if (!found[at] || !is_here(found[at])) result = INVALID_DEVICE;
        else if (strcmp(found[at]->model, models[at])) result = INVALID_VALUE;
    }
    if (result) {
        close_devices();
        return result;
    }
    struct node old = node;
    struct gpu *before[MOST_GPUS];
    memcpy(before, seen, sizeof before);
    for (int at = 0; at < seen_count; at++) seen[at] = &node.gpus[found[at] - live.gpus];
    node = live;
    int done = 0;
    for (; done < MOST_ALLOCATIONS && !result; done++) {
        int id = done;
        if (!allocations[id].used) continue;
        result = make(id);
        if (!result) result = move(id, 0, allocations[id].host, allocations[id].size, 0);
    }
    if (result) { /* as it was: still checkpointed */
        while (done--)
            if (allocations[done].used) drop(done);
        node = old;
        memcpy(seen, before, sizeof before);
        close_devices();
        return result;
    }
    for (int id = 0; id < MOST_ALLOCATIONS; id++) {
        if (!allocations[id].used) continue;
        munmap(allocations[id].host, allocations[id].size);
        allocations[id].host = NULL;
    }
    return SUCCESS;
}

static int act(void) {
    static const int from[] = {-1, -1, RUNNING, LOCKED, CHECKPOINTED, LOCKED};
    static const int to[] = {-1, -1, LOCKED, CHECKPOINTED, LOCKED, RUNNING};
    if (page->verb == VERB_STATE) return SUCCESS;
    if (page->state != from[page->verb]) return ILLEGAL_STATE;
    int result;
    while ((result = fault(VERBS[page->verb])) == HANG) nap(20);
    pthread_mutex_lock(&gate);
    if (!result && page->verb == VERB_CHECKPOINT) result = checkpoint();
    if (!result && page->verb == VERB_RESTORE) result = restore();
    if (!result) page->state = to[page->verb];
    pthread_cond_broadcast(&opened);
    pthread_mutex_unlock(&gate);
    return result;
}

static void *serve(void *unused) {
    (void)unused;
    prctl(PR_SET_NAME, "gpu-simulation");
    page->tid = syscall(SYS_gettid);
    for (;; nap(2)) {
        uint32_t request = page->request;
        if (request == page->done) continue;
        page->result = act();
        __sync_synchronize();
        page->done = request;
    }
    return NULL;
}

/* --- the driver API, as far as our programs use it --- */

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t deviceptr;

static int enter(void) { /* CUDA calls block while the process is locked or checkpointed */
    if (!initialised || getpid() != page->owner) return NOT_INITIALIZED;
    pthread_mutex_lock(&gate);
    while (page->state != RUNNING) pthread_cond_wait(&opened, &gate);
    return SUCCESS;
}
static int leave(int result) {
    pthread_mutex_unlock(&gate);
    return result;
}

static int controlling; /* cuInit in a process without /dev/nvidia*: the one that checkpoints others, not a program */

EXPORT int cuInit(unsigned flags) {
    (void)flags;
    if (initialised || controlling) return SUCCESS;
    if (read_node(&node) || !node.count) return NO_DEVICE;
    if (access("/dev/nvidiactl", F_OK)) {
        for (int at = node.count - 1; at >= 0; at--) seen[seen_count++] = &node.gpus[at];
        controlling = 1;
        return SUCCESS;
    }
    int result = open_devices();
    if (result) return result;
    look();
    page = mmap((void *)PAGE_ADDRESS, sizeof *page, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (page == MAP_FAILED) return OPERATING_SYSTEM;
    page->owner = getpid();
    page->state = RUNNING;
    sigset_t all, old;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&thread, NULL, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) return OPERATING_SYSTEM;
    initialised = 1;
    memcpy(page->magic, PAGE_MAGIC, sizeof page->magic);
    return SUCCESS;
}

EXPORT int cuDriverGetVersion(int *version) {
    struct node now;
    if (read_node(&now)) return NO_DEVICE;
    *version = now.cuda;
    return SUCCESS;
}
EXPORT int cuDeviceGetCount(int *count) { return *count = seen_count, SUCCESS; }
EXPORT int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= seen_count) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
EXPORT int cuDeviceGetUuid_v2(uint8_t *uuid, int device) { return memcpy(uuid, seen[device]->raw, 16), SUCCESS; }
EXPORT int cuDeviceGetName(char *name, int size, int device) {
    return snprintf(name, size, "%s", seen[device]->model), SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)(long)(device + 1), SUCCESS; }
EXPORT int cuCtxSetCurrent(void *context) { return (void)context, SUCCESS; }
EXPORT int cuCtxSynchronize(void) {
    int result = enter();
    return result ? result : leave(SUCCESS);
}
EXPORT int cuMemAlloc_v2(deviceptr *pointer, size_t size) {
    int result = enter();
    if (result) return result;
    int id = 1;
    while (id < MOST_ALLOCATIONS && allocations[id].used) id++;
    if (id == MOST_ALLOCATIONS) return leave(OUT_OF_MEMORY);
    allocations[id] = (struct allocation){.size = size, .gpu = id % seen_count};
    result = make(id);
    allocations[id].used = !result;
    *pointer = (deviceptr)id << ID_SHIFT;
    return leave(result);
}
EXPORT int cuMemAllocManaged(deviceptr *pointer, size_t size, unsigned flags) {
    (void)flags;
    managed = 1;
    return cuMemAlloc_v2(pointer, size);
}
EXPORT int cuMemFree_v2(deviceptr pointer) {
    int result = enter(), id = pointer >> ID_SHIFT;
    if (result) return result;
    if (id <= 0 || id >= MOST_ALLOCATIONS || !allocations[id].used) return leave(INVALID_VALUE);
    drop(id);
    allocations[id].used = 0;
    return leave(SUCCESS);
}
EXPORT int cuMemcpyHtoD_v2(deviceptr to, const void *from, size_t size) {
    int result = enter();
    return result ? result : leave(move(to >> ID_SHIFT, OFFSET(to), (char *)from, size, 0));
}
EXPORT int cuMemcpyDtoH_v2(void *to, deviceptr from, size_t size) {
    int result = enter();
    return result ? result : leave(move(from >> ID_SHIFT, OFFSET(from), to, size, 1));
}

/* --- from outside: another process, by its PID here --- */

static int copy(int pid, void *here, uintptr_t there, size_t size, int write) {
    struct iovec mine = {here, size}, theirs = {(void *)there, size};
    ssize_t done = write ? process_vm_writev(pid, &mine, 1, &theirs, 1, 0) : process_vm_readv(pid, &mine, 1, &theirs, 1, 0);
    return done == (ssize_t)size;
}
#define AT(field) (PAGE_ADDRESS + offsetof(struct page, field))

static int inner_pid(int pid) {
    char path[64], line[256];
    int inner = -1;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "NSpid:", 6)) inner = atoi(strrchr(line, '\t') + 1);
    if (file) fclose(file);
    return inner;
}

static int tell(int pid, int verb, int timeout_ms, const void *pairs, uint32_t count, int *state) {
    struct page other;
    char path[512];
    if (!controlling && !initialised) return NOT_INITIALIZED;
    if (!copy(pid, &other, PAGE_ADDRESS, sizeof other, 0) || memcmp(other.magic, PAGE_MAGIC, sizeof other.magic) ||
        other.owner != inner_pid(pid))
        return NOT_INITIALIZED;
    /* one controller at a time for each process; a killed one leaves its request, which is still carried out */
    snprintf(path, sizeof path, "%s/control.%d", folder(), pid);
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX)) return OPERATING_SYSTEM;
    int result = SUCCESS, asked = 0;
    uint32_t number = 0;
    for (;; nap(2)) {
        if (!copy(pid, &other, PAGE_ADDRESS, sizeof other, 0)) {
            result = OPERATING_SYSTEM; /* it died */
            break;
        }
        if (!asked && other.request == other.done) {
            asked = 1;
            number = other.request + 1;
            uint32_t rows = count < MOST_GPUS ? count : MOST_GPUS;
            if (rows) copy(pid, (void *)pairs, AT(pairs), rows * 32, 1);
            copy(pid, &rows, AT(pair_count), sizeof rows, 1);
            copy(pid, &timeout_ms, AT(timeout_ms), sizeof timeout_ms, 1);
            copy(pid, &verb, AT(verb), sizeof verb, 1);
            copy(pid, &number, AT(request), sizeof number, 1);
        } else if (asked && other.done == number) {
            result = other.result;
            if (state) *state = other.state;
            break;
        }
    }
    close(lock);
    return result;
}

/* also for the simulation's cuda-checkpoint, whatever the driver's age */
EXPORT int simulation_state(int pid, int *state) { return tell(pid, VERB_STATE, 0, NULL, 0, state); }
EXPORT int simulation_lock(int pid, int ms) { return tell(pid, VERB_LOCK, ms, NULL, 0, NULL); }
EXPORT int simulation_checkpoint(int pid) { return tell(pid, VERB_CHECKPOINT, 0, NULL, 0, NULL); }
EXPORT int simulation_restore(int pid, const void *pairs, uint32_t count) {
    return tell(pid, VERB_RESTORE, 0, pairs, count, NULL);
}
EXPORT int simulation_unlock(int pid) { return tell(pid, VERB_UNLOCK, 0, NULL, 0, NULL); }

#ifndef NO_CHECKPOINT
static int zero(const void *bytes, size_t size) { /* reserved bytes must be zero */
    const char *at = bytes;
    while (size && !at[size - 1]) size--;
    return size == 0;
}
struct restore_args {
    const void *pairs;
    uint32_t count;
    char reserved[52];
};
EXPORT int cuCheckpointProcessGetState(int pid, int *state) { return simulation_state(pid, state); }
EXPORT int cuCheckpointProcessGetRestoreThreadId(int pid, int *tid) {
    struct page other;
    if (!copy(pid, &other, PAGE_ADDRESS, sizeof other, 0) || memcmp(other.magic, PAGE_MAGIC, 16)) return NOT_INITIALIZED;
    return *tid = other.tid, SUCCESS;
}
EXPORT int cuCheckpointProcessLock(int pid, const uint32_t *args) {
    if (args && !zero(args + 1, 60)) return INVALID_VALUE;
    return simulation_lock(pid, args ? (int)args[0] : 0);
}
EXPORT int cuCheckpointProcessCheckpoint(int pid, const void *args) {
    return args && !zero(args, 64) ? INVALID_VALUE : simulation_checkpoint(pid);
}
EXPORT int cuCheckpointProcessRestore(int pid, const struct restore_args *args) {
    if (args && (!zero(args->reserved, sizeof args->reserved) || (args->count && !args->pairs))) return INVALID_VALUE;
    return simulation_restore(pid, args ? args->pairs : NULL, args ? args->count : 0);
}
EXPORT int cuCheckpointProcessUnlock(int pid, const void *args) {
    return args && !zero(args, 64) ? INVALID_VALUE : simulation_unlock(pid);
}
#endif
