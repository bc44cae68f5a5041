/* The simulation's cuda-checkpoint program, on the simulation's libcuda. In the folder of the simulation the file
 * `toggle-only` makes it the one of driver 550, which knows neither --action nor --get-state. */
#include "simulation.h"

#include <unistd.h>

int cuInit(unsigned flags);
int simulation_state(int pid, int *state);
int simulation_lock(int pid, int ms);
int simulation_checkpoint(int pid);
int simulation_restore(int pid, const void *pairs, uint32_t count);
int simulation_unlock(int pid);

static const char *text(int result) {
    switch (result) {
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case NOT_INITIALIZED: return "initialization error";
    case ILLEGAL_STATE: return "the operation cannot be performed in the present state";
    case NOT_READY: return "device not ready";
    case NOT_SUPPORTED: return "operation not supported";
    case OPERATING_SYSTEM: return "OS call failed or operation not supported on this OS";
    default: return "unknown error";
    }
}

static int pairs_of(char *map, uint8_t pairs[][2][16]) {
    int count = 0;
    for (char *row = strtok(map, ","); row && count < MOST_GPUS; row = strtok(NULL, ",")) {
        char *new = strchr(row, '=');
        if (!new) return 0;
        *new++ = 0;
        raw_uuid(row, pairs[count][0]);
        raw_uuid(new, pairs[count][1]);
        count++;
    }
    return count;
}

int main(int argc, char **argv) {
    static const char *const states[] = {"running", "locked", "checkpointed", "failed"};
    const char *action = NULL;
    char path[512], *map = NULL;
    int pid = 0, timeout = 0, ask = 0, toggle = 0, help = 0, result = 0, state = 0;
    uint8_t pairs[MOST_GPUS][2][16];
    snprintf(path, sizeof path, "%s/toggle-only", folder());
    int old = !access(path, F_OK);
    for (int at = 1; at < argc; at++) {
        char *next = at + 1 < argc ? argv[at + 1] : "";
        if (!strcmp(argv[at], "--help")) help = 1;
        else if (!strcmp(argv[at], "--toggle")) toggle = 1;
        else if (!strcmp(argv[at], "--pid")) pid = atoi(next), at++;
        else if (!old && !strcmp(argv[at], "--get-state")) ask = 1;
        else if (!old && !strcmp(argv[at], "--action")) action = next, at++;
        else if (!old && !strcmp(argv[at], "--timeout")) timeout = atoi(next), at++;
        else if (!old && !strcmp(argv[at], "--device-map")) map = next, at++;
        else return fprintf(stderr, "unknown option %s\n", argv[at]), 1;
    }
    if (help)
        return printf("CUDA checkpoint and restore utility (SIMULATION)\n--toggle --pid <pid>\n%s",
                      old ? "" : "--get-state --pid <pid>\n--action lock | checkpoint | restore | unlock --pid <pid>\n"
                                 "--device-map <old>=<new>,...\n"), 0;
    if ((result = cuInit(0))) return fprintf(stderr, "%s\n", text(result)), 1;
    int count = map ? pairs_of(map, pairs) : 0;
    if (ask) {
        if (!(result = simulation_state(pid, &state))) printf("%s\n", states[state]);
    } else if (toggle) {
        if (!(result = simulation_state(pid, &state))) {
            if (state == RUNNING) result = simulation_lock(pid, 0) ?: simulation_checkpoint(pid);
            else if (state == CHECKPOINTED) result = simulation_restore(pid, NULL, 0) ?: simulation_unlock(pid);
            else result = ILLEGAL_STATE;
        }
    } else if (action) {
        result = !strcmp(action, "lock")         ? simulation_lock(pid, timeout)
                 : !strcmp(action, "checkpoint") ? simulation_checkpoint(pid)
                 : !strcmp(action, "restore")    ? simulation_restore(pid, pairs, count)
                 : !strcmp(action, "unlock")     ? simulation_unlock(pid)
                                                 : INVALID_VALUE;
    }
    if (result) fprintf(stderr, "Could not do that to process %d: \"%s\"\n", pid, text(result));
    return result != 0;
}
