/*
 * Trees of processes: depth, width, waits, orphans, programs, forks.
 *
 *   tree DIR PART        (`tree - list` prints the parts)
 */
#include "tree.h"
#include <pthread.h>

/* -- deep: a chain of generations ----------------------------------------------------------------------------------------------- */

enum { GENERATIONS = 6, LAG = 3 };

static struct worker deep_next;
static int deep_notes;           /* to the next generation: what it reads LAG steps later */
static uint64_t deep_steps;

static void deep_descend(int generation);

static void deep_body(int generation) {
    int notes = deep_notes;
    struct standing standing = standing_of(getpid());
    struct pattern memory = pattern_make(64, (uint64_t)generation);
    uint64_t read_so_far = 0;
    deep_steps = 0;
    deep_descend(generation);
    worker_answer();
    while (worker_order()) {
        deep_steps++;
        pattern_change(&memory, 5);
        if (generation < GENERATIONS) {
            pipe_put(deep_notes, &deep_steps, sizeof deep_steps);
            worker_step(&deep_next);
        }
        if (deep_steps > LAG) {
            uint64_t note;
            pipe_get(notes, &note, sizeof note);
            CHECK(note == ++read_so_far, "generation %d: note %lu instead of %lu", generation, note, read_so_far);
        }
        standing_check("deep", &standing);
        worker_answer();
    }
    pattern_check(&memory, "generation", generation);
    CHECK(deep_steps <= LAG || pipe_has_data(notes, 0), "generation %d: its notes are gone", generation);
    while (pipe_has_data(notes, 0) && read_so_far < deep_steps) {
        uint64_t note;
        pipe_get(notes, &note, sizeof note);
        CHECK(note == ++read_so_far, "generation %d: note %lu instead of %lu at the end", generation, note, read_so_far);
    }
    CHECK(read_so_far == deep_steps, "generation %d: %lu notes after %lu steps", generation, read_so_far, deep_steps);
    if (generation < GENERATIONS) worker_end(&deep_next, 41 + generation);
    standing_check("deep", &standing);
    _exit(40 + generation);
}

/* What the next generation reads it gets from here; it takes over `deep_notes` for what it writes. */
static void deep_descend(int generation) {
    if (generation >= GENERATIONS) return;
    int notes[2];
    pipe_make(notes);
    deep_notes = notes[0];
    deep_next = worker_start(deep_body, generation + 1);
    MUST(close(notes[0]));
    deep_notes = notes[1];
}

static void deep_set_up(void) { deep_descend(0); }

static void deep_step(void) {
    deep_steps++;
    pipe_put(deep_notes, &deep_steps, sizeof deep_steps);
    worker_step(&deep_next);
}

static void deep_finish(void) { worker_end(&deep_next, 41); }

/* -- wide: many children, each with threads --------------------------------------------------------------------------------------- */

enum { CHILDREN = 20, THREADS = 2 };

static struct worker wide[CHILDREN];

struct wide_thread {
    pthread_t thread;
    int tid;
    volatile uint64_t turns;
    uint64_t rng;
    volatile bool stop;
};

static void *wide_thread(void *argument) {
    struct wide_thread *self = argument;
    volatile uint64_t on_stack = self->rng, expected = self->rng;
    self->tid = gettid();
    while (!self->stop) {
        CHECK(on_stack == expected && gettid() == self->tid, "a thread of pid %d is not itself", getpid());
        uint64_t next = on_stack;
        random_next(&next);
        on_stack = expected = next;
        self->turns++;
        guest_sleep_ms(3);
    }
    return NULL;
}

static void wide_body(int number) {
    struct standing standing = standing_of(getpid());
    struct pattern memory = pattern_make(32, (uint64_t)number + 100);
    struct wide_thread threads[THREADS] = {0};
    for (int i = 0; i < THREADS; i++) {
        threads[i].rng = (uint64_t)(number * THREADS + i);
        MUST0(pthread_create(&threads[i].thread, NULL, wide_thread, &threads[i]));
    }
    worker_answer();
    while (worker_order()) {
        pattern_change(&memory, 2);
        standing_check("wide", &standing);
        worker_answer();
    }
    pattern_check(&memory, "child", number);
    for (int i = 0; i < THREADS; i++) {
        uint64_t turns = threads[i].turns;
        for (int tries = 0; threads[i].turns < turns + 2 && tries < 2000; tries++) guest_sleep_ms(2);
        CHECK(threads[i].turns >= turns + 2, "child %d: thread %d does not run", number, i);
        threads[i].stop = true;
        MUST0(pthread_join(threads[i].thread, NULL));
    }
    standing_check("wide", &standing);
    _exit(number + 1);
}

static void wide_set_up(void) {
    for (int i = 0; i < CHILDREN; i++) wide[i] = worker_start(wide_body, i);
}

static void wide_step(void) {
    for (int i = 0; i < CHILDREN; i++) worker_step(&wide[i]);
}

static void wide_finish(void) {
    for (int i = 0; i < CHILDREN; i++) worker_end(&wide[i], i + 1);
}

/* -- waiting: parents that sleep in wait4 and waitid ------------------------------------------------------------------------------ */

enum { WAITERS = 3 };

static pid_t waiters[WAITERS];
static struct worker waited_for[WAITERS];

static void waited_for_body(int number) {
    struct standing standing = standing_of(getpid());
    worker_answer();
    while (worker_order()) worker_answer();
    standing_check("waited for", &standing);
    _exit(60 + number);
}

static void wait_for_child(int number) {
    int status = 0;
    siginfo_t info = {0};
    pid_t child;
    switch (number) {
    case 0:
        child = wait4(-1, &status, 0, NULL);
        CHECK(child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 60, "wait4: %d, %s, status %#x", child, strerror(errno), status);
        break;
    case 1:
        CHECK(waitid(P_ALL, 0, &info, WEXITED) == 0, "waitid: %s", strerror(errno));
        CHECK(info.si_code == CLD_EXITED && info.si_status == 61, "waitid: code %d, status %d", info.si_code, info.si_status);
        break;
    default:
        child = waitpid(0, &status, WUNTRACED | WCONTINUED);
        CHECK(child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 62, "waitpid: %d, %s, status %#x", child, strerror(errno), status);
    }
    CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "a waiter has a child too many");
    _exit(70 + number);
}

static void waiting_set_up(void) {
    for (int i = 0; i < WAITERS; i++) {
        struct worker_pipes pipes = worker_pipes();
        pid_t waiter = MUST(fork());
        if (waiter == 0) {
            if (MUST(fork()) == 0) {
                worker_begin(&pipes);
                waited_for_body(i);
            }
            wait_for_child(i);
        }
        waiters[i] = waiter;
        waited_for[i] = worker_made(&pipes, 0);
    }
}

static void waiting_step(void) {
    for (int i = 0; i < WAITERS; i++) {
        worker_step(&waited_for[i]);
        CHECK(waitpid(waiters[i], NULL, WNOHANG) == 0, "waiter %d has ended", i);
    }
}

static void waiting_finish(void) {
    for (int i = 0; i < WAITERS; i++) {
        worker_finish(&waited_for[i]);
        worker_expect(waiters[i], 70 + i);
    }
}

/* -- orphan, subreaper: children whose parents have ended ---------------------------------------------------------------------------- */

static struct worker orphans[2];
static pid_t orphan_home[2]; /* who gets them */

static void orphan_body(int number) {
    while (getppid() != orphan_home[number] && orphan_home[number]) guest_sleep_ms(1);
    struct pattern memory = pattern_make(16, (uint64_t)number + 300);
    worker_answer();
    while (worker_order()) {
        pattern_change(&memory, 3);
        if (orphan_home[number]) CHECK(getppid() == orphan_home[number], "orphan %d came to %d", number, getppid());
        worker_answer();
    }
    pattern_check(&memory, "orphan", number);
    if (orphan_home[number]) CHECK(getppid() == orphan_home[number], "orphan %d came to %d", number, getppid());
    worker_answer(); /* its parent may not be ours to ask */
    _exit(80 + number);
}

/* A grandchild whose parent has ended. */
static struct worker orphan_make(int number) {
    struct worker_pipes pipes = worker_pipes();
    pid_t ids[2];
    int pid_pipe[2];
    pipe_make(pid_pipe);
    ids[0] = MUST(fork());
    if (ids[0] == 0) {
        ids[1] = MUST(fork());
        if (ids[1] == 0) {
            worker_begin(&pipes);
            orphan_body(number);
        }
        pipe_put(pid_pipe[1], &ids[1], sizeof ids[1]);
        _exit(0);
    }
    pipe_get(pid_pipe[0], &ids[1], sizeof ids[1]);
    MUST(close(pid_pipe[0]));
    MUST(close(pid_pipe[1]));
    worker_expect(ids[0], 0);
    return worker_made(&pipes, ids[1]);
}

static void orphan_end(const struct worker *orphan) {
    char last;
    worker_finish(orphan);
    pipe_get(orphan->answers, &last, 1);
}

/* Whoever gets it, it is of the job. */
static void orphan_set_up(void) { orphans[0] = orphan_make(0); }

static void orphan_step(void) { worker_step(&orphans[0]); }

static void orphan_finish(void) {
    CHECK(kill(orphans[0].pid, 0) == 0, "the orphan %d is gone", orphans[0].pid);
    orphan_end(&orphans[0]);
}

/* A worker that is a subreaper itself, below one that is. */
static void subreaper_body(int number) {
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    orphan_home[1] = getpid();
    orphans[1] = orphan_make(1);
    worker_answer();
    while (worker_order()) {
        worker_step(&orphans[1]);
        worker_answer();
    }
    int subreaper = 0;
    MUST(prctl(PR_GET_CHILD_SUBREAPER, &subreaper));
    CHECK(subreaper == 1, "it is no subreaper any more");
    orphan_end(&orphans[1]);
    worker_expect(orphans[1].pid, 81);
    struct worker late = orphan_make(1); /* also what is made now comes here */
    orphan_end(&late);
    worker_expect(late.pid, 81);
    _exit(number);
}

static struct worker subreaper;

static void subreaper_set_up(void) {
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    orphan_home[0] = tree_root;
    orphans[0] = orphan_make(0);
    subreaper = worker_start(subreaper_body, 90);
}

static void subreaper_step(void) {
    worker_step(&orphans[0]);
    worker_step(&subreaper);
}

static void subreaper_finish(void) {
    orphan_end(&orphans[0]);
    worker_expect(orphans[0].pid, 80);
    struct worker late = orphan_make(0);
    orphan_end(&late);
    worker_expect(late.pid, 80);
    worker_end(&subreaper, 90);
}

/* -- exec: other programs in the tree ------------------------------------------------------------------------------------------------ */

static pid_t program_sleep;
static struct program {
    pid_t pid;
    int in, out;
} program_cat, program_sum;
static uint64_t program_total;

static struct program program_start(const char *file, char *const *argv) {
    int in[2], out[2];
    pipe_make(in);
    pipe_make(out);
    pid_t pid = MUST(fork());
    if (pid == 0) {
        MUST(dup2(in[0], 0));
        MUST(dup2(out[1], 1));
        execvp(file, argv);
        guest_fail("exec of %s: %s", file, strerror(errno));
    }
    MUST(close(in[0]));
    MUST(close(out[1]));
    return (struct program){pid, in[1], out[0]};
}

/* Sends a line and reads one. */
static void program_ask(const struct program *program, const char *question, const char *expected) {
    char line[64] = "";
    pipe_put(program->in, question, strlen(question));
    for (size_t length = 0; !length || line[length - 1] != '\n'; length++) {
        CHECK(length + 1 < sizeof line, "a program says too much: %s", line);
        pipe_get(program->out, line + length, 1);
    }
    CHECK(strcmp(line, expected) == 0, "pid %d says %s instead of %s", program->pid, line, expected);
}

static void exec_set_up(void) {
    program_sleep = MUST(fork());
    if (program_sleep == 0) {
        execlp("sleep", "sleep", "1000", NULL);
        guest_fail("exec of sleep: %s", strerror(errno));
    }
    program_cat = program_start("cat", (char *[]){"cat", NULL});
    program_sum = program_start("sh", (char *[]){"sh", "-c", "y=0; while read x; do y=$((y+x)); echo $y; done; exit 17", NULL});
}

static void exec_step(void) {
    char question[64], answer[64];
    uint64_t number = guest_steps * 7 + 3;
    snprintf(question, sizeof question, "%lu\n", number);
    snprintf(answer, sizeof answer, "%lu\n", program_total += number);
    program_ask(&program_cat, question, question);
    program_ask(&program_sum, question, answer);
}

static void exec_finish(void) {
    int status = 0;
    MUST(close(program_cat.in));
    MUST(close(program_sum.in));
    worker_expect(program_cat.pid, 0);
    worker_expect(program_sum.pid, 17);
    MUST(kill(program_sleep, SIGTERM));
    CHECK(waitpid(program_sleep, &status, 0) == program_sleep && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM,
          "sleep ended with status %#x", status);
}

/* -- forker: processes that fork and exit without pause ---------------------------------------------------------------------------- */

enum { FORKERS = 3, AT_A_TIME = 4 };

static struct worker forkers[FORKERS];

static void forker_body(int number) {
    struct {
        pid_t pid;
        uint32_t number;
    } living[AT_A_TIME] = {0};
    int told[2];
    uint64_t made = 0, reaped = 0, heard = 0, sum = 0, pool_sum = 0;
    pipe_make(told);
    bool on = true;
    worker_answer();
    while (on || reaped < made) {
        for (int i = 0; on && i < AT_A_TIME; i++) {
            if (living[i].pid) continue;
            living[i].number = (uint32_t)++made;
            sum += made;
            living[i].pid = MUST(fork());
            if (living[i].pid == 0) {
                pipe_put(told[1], &living[i].number, sizeof living[i].number);
                _exit((int)(living[i].number & 127));
            }
        }
        int status = 0, at = 0;
        pid_t ended = MUST(waitpid(-1, &status, 0));
        while (at < AT_A_TIME && living[at].pid != ended) at++;
        CHECK(at < AT_A_TIME, "forker %d: pid %d ended, which it did not make", number, ended);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (int)(living[at].number & 127), "forker %d: child %u ended with status %#x",
              number, living[at].number, status);
        living[at].pid = 0;
        reaped++;
        while (pipe_has_data(told[0], 0)) {
            uint32_t said;
            pipe_get(told[0], &said, sizeof said);
            heard++;
            pool_sum += said;
        }
        if (on && pipe_has_data(worker_self.orders, 0)) {
            on = worker_order();
            if (on) worker_answer();
        }
    }
    CHECK(heard == made && pool_sum == sum, "forker %d: made %lu children (sum %lu) and heard of %lu (sum %lu)", number, made, sum, heard,
          pool_sum);
    CHECK(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD, "forker %d has a child too many", number);
    _exit(100 + number);
}

static void forker_set_up(void) {
    for (int i = 0; i < FORKERS; i++) forkers[i] = worker_start(forker_body, i);
}

static void forker_step(void) {
    for (int i = 0; i < FORKERS; i++) worker_step(&forkers[i]);
}

static void forker_finish(void) {
    for (int i = 0; i < FORKERS; i++) worker_end(&forkers[i], 100 + i);
}

int main(int argc, char **argv) {
    static const struct part parts[] = {
        {"deep", deep_set_up, deep_step, deep_finish},
        {"wide", wide_set_up, wide_step, wide_finish},
        {"waiting", waiting_set_up, waiting_step, waiting_finish},
        {"orphan", orphan_set_up, orphan_step, orphan_finish},
        {"subreaper", subreaper_set_up, subreaper_step, subreaper_finish},
        {"exec", exec_set_up, exec_step, exec_finish},
        {"forker", forker_set_up, forker_step, forker_finish},
    };
    return tree_main(argc, argv, parts, ARRAY_LEN(parts));
}
