/*
 * What job control and parents know of processes: sessions, groups, zombies, stops, signals of exit and of a parent's death.
 *
 *   tree_jobs DIR PART        (`tree_jobs - list` prints the parts)
 */
#include "tree.h"
#include <pthread.h>

static volatile pid_t *board; /* pids that relatives tell each other while all is set up; gone when the state stands */

static void board_open(void) {
    board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(board != MAP_FAILED, "mmap: %s", strerror(errno));
}

/* A process's board must be closed by itself: shared memory has guests of its own. */
static void board_close(void) { MUST(munmap((void *)board, PAGE)); }

/* -- sessions and process groups ------------------------------------------------------------------------------------------------- */

/* Names of the processes, which are their places on the board. */
enum { LEADER, IN_SESSION, OWN_GROUP, IN_OTHERS_GROUP, LED, LEFT_BEHIND, LEFT_GROUP, OLD_SESSION, NEW_LEADER, MOVER, MEMBERS };

static struct worker members[MEMBERS];
static struct worker_pipes member_pipes[MEMBERS];
static pid_t member_group[MEMBERS]; /* as the root sees them */

static void member_live(int who) {
    worker_begin(&member_pipes[who]);
    board[who] = getpid();
    signal_watch(SIGUSR1);
    worker_answer(); /* it is made */
    CHECK(worker_order(), "it is told to finish before all is set up");
    board_close();
    struct standing standing = standing_of(getpid());
    worker_answer(); /* all are made */
    while (worker_order()) {
        if (who == MOVER) {
            MUST(setpgid(0, standing.pgid == 0 ? 0 : getpgid(tree_root)));
            standing = standing_of(getpid());
            CHECK(standing.pgid == 0 || standing.pgid == getpid(), "the mover is in group %d", standing.pgid);
        }
        standing_check("member", &standing);
        worker_answer();
    }
    standing_check("member", &standing);
    signal_expect("member", SIGUSR1, who == LED || who == LEFT_BEHIND || who == LEFT_GROUP || who == IN_OTHERS_GROUP || who == OWN_GROUP);
    _exit(100 + who);
}

static void member_fork(int who) {
    pid_t pid = MUST(fork());
    if (pid == 0) member_live(who);
}

static pid_t member_wait(int who) {
    while (!board[who]) guest_sleep_ms(1);
    return board[who];
}

/* A session with a group of two beside its leader's. */
static void member_lead_session(void) {
    MUST(setsid());
    member_fork(IN_SESSION);
    pid_t other = MUST(fork());
    if (other == 0) {
        MUST(setpgid(0, 0));
        member_live(OWN_GROUP);
    }
    pid_t group = member_wait(OWN_GROUP);
    if (MUST(fork()) == 0) {
        MUST(setpgid(0, group));
        member_live(IN_OTHERS_GROUP);
    }
    member_wait(IN_SESSION);
    member_wait(IN_OTHERS_GROUP);
    /* They are this one's children, and are waited for by it. */
    worker_begin(&member_pipes[LEADER]);
    board[LEADER] = getpid();
    worker_answer();
    CHECK(worker_order(), "it is told to finish before all is set up");
    pid_t children[] = {board[IN_SESSION], board[OWN_GROUP], board[IN_OTHERS_GROUP]};
    board_close();
    struct standing standing = standing_of(getpid());
    CHECK(standing.sid == getpid() && standing.pgid == getpid(), "it leads no session");
    worker_answer();
    while (worker_order()) {
        standing_check("leader of a session", &standing);
        worker_answer();
    }
    for (int i = 0; i < 3; i++) worker_expect(children[i], 100 + (i == 0 ? IN_SESSION : i == 1 ? OWN_GROUP : IN_OTHERS_GROUP));
    standing_check("leader of a session", &standing);
    _exit(100 + LEADER);
}

/* A session whose leader ends: two are left behind in it, one in the leader's group, one in a group of its own. */
static void member_lose_leader(void) {
    MUST(setsid());
    member_fork(LEFT_BEHIND);
    if (MUST(fork()) == 0) {
        MUST(setpgid(0, 0));
        member_live(LEFT_GROUP);
    }
    member_wait(LEFT_BEHIND);
    member_wait(LEFT_GROUP);
    _exit(0);
}

/* A process that leaves its child behind in the session where it was born. */
static void member_leave_session(void) {
    member_fork(OLD_SESSION);
    pid_t child = member_wait(OLD_SESSION);
    MUST(setsid());
    worker_begin(&member_pipes[NEW_LEADER]);
    board[NEW_LEADER] = getpid();
    worker_answer();
    CHECK(worker_order(), "it is told to finish before all is set up");
    board_close();
    struct standing standing = standing_of(getpid());
    worker_answer();
    while (worker_order()) {
        standing_check("leader of a new session", &standing);
        worker_answer();
    }
    worker_expect(child, 100 + OLD_SESSION);
    standing_check("leader of a new session", &standing);
    _exit(100 + NEW_LEADER);
}

static void member_made(int who) {
    members[who] = worker_made(&member_pipes[who], 0);
    members[who].pid = board[who];
}

static void sessions_set_up(void) {
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    board_open();
    for (int i = 0; i < MEMBERS; i++) member_pipes[i] = worker_pipes();
    if (MUST(fork()) == 0) member_lead_session();
    pid_t lost = MUST(fork());
    if (lost == 0) member_lose_leader();
    if (MUST(fork()) == 0) member_leave_session();
    member_fork(MOVER);
    /* A group whose leader has ended and been waited for. */
    pid_t group = MUST(fork());
    if (group == 0) {
        MUST(setpgid(0, 0));
        while (!board[LED]) guest_sleep_ms(1);
        _exit(0);
    }
    while (getpgid(group) != group) guest_sleep_ms(1);
    if (MUST(fork()) == 0) {
        MUST(setpgid(0, group));
        member_live(LED);
    }
    worker_expect(group, 0);
    worker_expect(lost, 0);
    for (int i = 0; i < MEMBERS; i++) member_made(i);
    for (int i = 0; i < MEMBERS; i++) worker_step(&members[i]);
    board_close();
    for (int i = 0; i < MEMBERS; i++) member_group[i] = MUST(getpgid(members[i].pid));
}

static void sessions_step(void) {
    for (int i = 0; i < MEMBERS; i++) worker_step(&members[i]);
}

static void sessions_finish(void) {
    /* A signal to a group reaches its members, and nobody else. */
    static const int told[] = {LED, LEFT_BEHIND, LEFT_GROUP, OWN_GROUP};
    for (size_t i = 0; i < ARRAY_LEN(told); i++) {
        CHECK(getpgid(members[told[i]].pid) == member_group[told[i]], "member %d was in group %d", told[i], member_group[told[i]]);
        MUST(kill(-member_group[told[i]], SIGUSR1));
    }
    CHECK(getsid(members[LEFT_GROUP].pid) == getsid(members[LEFT_BEHIND].pid), "a session without leader has split");
    CHECK(getsid(members[OLD_SESSION].pid) == getsid(0), "a child was taken into its parent's new session");
    for (int i = 0; i < MEMBERS; i++) worker_finish(&members[i]);
    static const int mine[] = {LEADER, LED, LEFT_BEHIND, LEFT_GROUP, NEW_LEADER, MOVER};
    for (size_t i = 0; i < ARRAY_LEN(mine); i++) worker_expect(members[mine[i]].pid, 100 + mine[i]);
}

/* -- zombies ------------------------------------------------------------------------------------------------------------------------ */

static struct zombie {
    const char *name;
    int code, killed_by; /* how it ended */
    bool own_session, silent;
    pid_t pid;
} zombies[] = {
    {.name = "exit 0"},
    {.name = "exit 255", .code = 255},
    {.name = "killed", .killed_by = SIGKILL},
    {.name = "faulted", .killed_by = SIGSEGV},
    {.name = "real-time", .killed_by = 40},
    {.name = "a (odd) name", .code = 3, .own_session = true},
    {.name = "silent", .code = 4, .silent = true},
};

static char zombie_before[ARRAY_LEN(zombies)][512];
static struct worker zombie_parent;
static int zombie_signals;

/* What is left to see of it: name, state, parent, group, session, exit signal, status (numbers as in proc(5)). */
static void zombie_describe(pid_t pid, char out[static 512]) {
    char path[64], text[4096], *save = NULL;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    guest_read_file(path, text, sizeof text);
    char *end = strrchr(text, ')');
    *end = 0;
    int length = snprintf(out, 512, "%s) ", text), number = 3;
    for (char *field = strtok_r(end + 2, " ", &save); field; field = strtok_r(NULL, " ", &save), number++) {
        if ((number == 5 && atoi(field) == getpgid(0)) || (number == 6 && atoi(field) == getsid(0))) field = "ours";
        if (number <= 6 || number == 38 || number == 52) length += snprintf(out + length, 512 - (size_t)length, "%s ", field);
    }
}

static void zombie_make(struct zombie *zombie) {
    zombie->pid = MUST((pid_t)syscall(SYS_clone, zombie->silent ? 0UL : (unsigned long)SIGCHLD, NULL, NULL, NULL, 0UL));
    if (zombie->pid == 0) {
        MUST(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}));
        MUST(prctl(PR_SET_NAME, zombie->name));
        if (zombie->own_session) MUST(setsid());
        if (zombie->killed_by) {
            signal(zombie->killed_by, SIG_DFL);
            kill(getpid(), zombie->killed_by);
        }
        _exit(zombie->code);
    }
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)zombie->pid, &info, WEXITED | WNOWAIT | __WALL));
}

static void zombie_check(struct zombie *zombie) {
    siginfo_t info = {0};
    MUST(waitid(P_PID, (id_t)zombie->pid, &info, WEXITED | WNOWAIT | WNOHANG | __WALL));
    int code = zombie->killed_by ? CLD_KILLED : CLD_EXITED, value = zombie->killed_by ? zombie->killed_by : zombie->code;
    CHECK(info.si_pid == zombie->pid && info.si_code == code && info.si_status == value && info.si_uid == getuid(),
          "%s: waitid says pid %d code %d status %d uid %u", zombie->name, info.si_pid, info.si_code, info.si_status, info.si_uid);
    int status = 0, wanted = zombie->killed_by ? zombie->killed_by : zombie->code << 8;
    if (zombie->silent) CHECK(waitpid(zombie->pid, NULL, WNOHANG) == -1 && errno == ECHILD, "%s can be waited for without __WALL", zombie->name);
    pid_t waited = wait4(zombie->pid, &status, WNOHANG | __WALL, NULL);
    CHECK(waited == zombie->pid && status == wanted, "%s: wait4 says %d, status %#x instead of %#x", zombie->name, waited, status, wanted);
    CHECK(kill(zombie->pid, 0) == -1 && errno == ESRCH, "%s is not gone", zombie->name);
}

/* A worker with a zombie of its own, of which the signal waits. */
static void zombie_parent_body(int number) {
    struct zombie zombie = {.name = "below", .code = 9};
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    zombie_make(&zombie);
    worker_answer();
    while (worker_order()) worker_answer();
    MUST(sigpending(&pending));
    CHECK(sigismember(&pending, SIGCHLD), "SIGCHLD does not wait any more");
    siginfo_t info = {0};
    CHECK(sigtimedwait(&set, &info, &(struct timespec){0}) == SIGCHLD, "sigtimedwait: %s", strerror(errno));
    CHECK(info.si_pid == zombie.pid && info.si_code == CLD_EXITED && info.si_status == 9, "SIGCHLD of pid %d, code %d, status %d",
          info.si_pid, info.si_code, info.si_status);
    CHECK(sigtimedwait(&set, &info, &(struct timespec){0}) == -1 && errno == EAGAIN, "SIGCHLD waits twice");
    zombie_check(&zombie);
    _exit(number);
}

static void zombies_set_up(void) {
    signal_watch(SIGCHLD);
    for (size_t i = 0; i < ARRAY_LEN(zombies); i++) {
        zombie_make(&zombies[i]);
        zombie_describe(zombies[i].pid, zombie_before[i]);
    }
    zombie_parent = worker_start(zombie_parent_body, 50);
    zombie_signals = signals_seen[SIGCHLD];
    CHECK(zombie_signals == ARRAY_LEN(zombies) - 1, "SIGCHLD was seen %d times", zombie_signals);
}

static void zombies_step(void) {
    worker_step(&zombie_parent);
    CHECK(signals_seen[SIGCHLD] == zombie_signals, "SIGCHLD was sent again: %d instead of %d", (int)signals_seen[SIGCHLD], zombie_signals);
}

static void zombies_finish(void) {
    for (size_t i = 0; i < ARRAY_LEN(zombies); i++) {
        char after[512];
        zombie_describe(zombies[i].pid, after);
        CHECK(strcmp(zombie_before[i], after) == 0, "%s: was  %s  and is  %s", zombies[i].name, zombie_before[i], after);
        zombie_check(&zombies[i]);
    }
    CHECK(signals_seen[SIGCHLD] == zombie_signals, "SIGCHLD was sent again: %d instead of %d", (int)signals_seen[SIGCHLD], zombie_signals);
    worker_end(&zombie_parent, 50);
}

/* -- stopped ------------------------------------------------------------------------------------------------------------------------ */

/* What a terminal sends does not stop a group of which nobody has a parent in another one of the session: so they have their own. */
static struct stopped {
    const char *name;
    int by;
    bool own_group, noticed, threads; /* noticed: the parent has waited for the stop */
    struct worker worker;
    pid_t group;
} stopped[] = {
    {.name = "SIGSTOP", .by = SIGSTOP},
    {.name = "SIGSTOP, noticed", .by = SIGSTOP, .noticed = true},
    {.name = "SIGTSTP in its group", .by = SIGTSTP, .own_group = true},
    {.name = "SIGTTIN, noticed, with threads", .by = SIGTTIN, .own_group = true, .noticed = true, .threads = true},
};
static int stop_signals;
static volatile uint64_t stopped_turns;

static void *stopped_thread(void *unused) {
    for (;; guest_sleep_ms_eintr(2)) stopped_turns++;
    return unused;
}

static void stopped_body(int number) {
    pthread_t thread;
    if (stopped[number].own_group) MUST(setpgid(0, 0));
    if (stopped[number].threads) MUST0(pthread_create(&thread, NULL, stopped_thread, NULL));
    struct pattern memory = pattern_make(16, (uint64_t)number + 500);
    pattern_change(&memory, 20);
    struct standing standing = standing_of(getpid());
    signal_watch(SIGCONT);
    worker_answer();
    while (worker_order()) worker_answer(); /* the first order comes while it is stopped */
    pattern_check(&memory, "stopped", number);
    signal_expect(stopped[number].name, SIGCONT, 1);
    if (stopped[number].threads) {
        uint64_t turns = stopped_turns;
        for (int tries = 0; stopped_turns < turns + 2 && tries < 2000; tries++) guest_sleep_ms_eintr(2);
        CHECK(stopped_turns >= turns + 2, "the thread of %s does not run", stopped[number].name);
    }
    standing_check(stopped[number].name, &standing);
    _exit(30 + number);
}

static void stopped_set_up(void) {
    signal_watch(SIGCHLD);
    for (size_t i = 0; i < ARRAY_LEN(stopped); i++) {
        struct stopped *one = &stopped[i];
        siginfo_t info;
        one->worker = worker_start(stopped_body, (int)i);
        one->group = one->own_group ? -one->worker.pid : one->worker.pid;
        MUST(kill(one->group, one->by));
        MUST(waitid(P_PID, (id_t)one->worker.pid, &info, WSTOPPED | (one->noticed ? 0 : WNOWAIT)));
        CHECK(info.si_code == CLD_STOPPED && info.si_status == one->by, "%s: code %d status %d", one->name, info.si_code, info.si_status);
        pipe_put(one->worker.orders, "s", 1);
    }
    stop_signals = signals_seen[SIGCHLD];
}

static void stopped_step(void) {
    for (size_t i = 0; i < ARRAY_LEN(stopped); i++)
        CHECK(!pipe_has_data(stopped[i].worker.answers, 0), "%s: it runs", stopped[i].name);
    CHECK(signals_seen[SIGCHLD] == stop_signals, "SIGCHLD was sent again: %d instead of %d", (int)signals_seen[SIGCHLD], stop_signals);
}

static void stopped_finish(void) {
    stopped_step();
    for (size_t i = 0; i < ARRAY_LEN(stopped); i++) {
        struct stopped *one = &stopped[i];
        siginfo_t info = {0};
        char answer;
        MUST(waitid(P_PID, (id_t)one->worker.pid, &info, WSTOPPED | WNOHANG));
        if (one->noticed) CHECK(info.si_pid == 0, "%s: the parent hears of the stop a second time", one->name);
        else CHECK(info.si_pid == one->worker.pid && info.si_code == CLD_STOPPED && info.si_status == one->by,
                   "%s: waitid says pid %d code %d status %d", one->name, info.si_pid, info.si_code, info.si_status);
        MUST(kill(one->group, SIGCONT));
        pipe_get(one->worker.answers, &answer, 1);
        info.si_pid = 0;
        MUST(waitid(P_PID, (id_t)one->worker.pid, &info, WCONTINUED | WNOHANG));
        CHECK(info.si_pid == one->worker.pid && info.si_code == CLD_CONTINUED, "%s: the parent does not hear of SIGCONT", one->name);
        worker_end(&one->worker, 30 + (int)i);
    }
}

/* -- dead leader: a process whose main thread has ended ------------------------------------------------------------------------------- */

static struct worker dead_leader;

static void *dead_leader_thread(void *argument) {
    int number = *(int *)argument;
    struct pattern memory = pattern_make(16, 700);
    char state = 0, path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    while (state != 'Z') {
        guest_sleep_ms(1);
        guest_read_file(path, text, sizeof text);
        state = strrchr(text, ')')[2];
    }
    int tid = gettid();
    worker_answer();
    while (worker_order()) {
        pattern_change(&memory, 2);
        CHECK(gettid() == tid && tid != getpid(), "the thread %d is %d of process %d", tid, gettid(), getpid());
        worker_answer();
    }
    pattern_check(&memory, "dead leader", number);
    guest_read_file(path, text, sizeof text);
    CHECK(strrchr(text, ')')[2] == 'Z', "the leader is %c", strrchr(text, ')')[2]);
    syscall(SYS_exit_group, number);
    return NULL;
}

static void dead_leader_body(int number) {
    static int code;
    pthread_t thread;
    code = number;
    MUST0(pthread_create(&thread, NULL, stopped_thread, NULL));
    MUST0(pthread_create(&thread, NULL, dead_leader_thread, &code));
    syscall(SYS_exit, 99);
}

static void dead_leader_set_up(void) { dead_leader = worker_start(dead_leader_body, 44); }
static void dead_leader_step(void) { worker_step(&dead_leader); }
static void dead_leader_finish(void) { worker_end(&dead_leader, 44); }

/* -- pdeathsig: a signal when the parent ends ------------------------------------------------------------------------------------------- */

static struct worker mortal, mourner;
static struct worker_pipes mourner_pipes;

static void mourner_body(void) {
    pid_t parent = getppid();
    worker_begin(&mourner_pipes);
    signal_watch(SIGUSR2);
    MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
    worker_answer();
    while (worker_order()) {
        int number = 0;
        MUST(prctl(PR_GET_PDEATHSIG, &number));
        CHECK(number == SIGUSR2, "the signal of the parent's death is %d", number);
        CHECK(signals_seen[SIGUSR2] == 0 && getppid() == parent, "the parent has died (pid %d, now %d)", parent, getppid());
        worker_answer();
    }
    signal_expect("mourner", SIGUSR2, 1);
    CHECK(getppid() == tree_root, "the orphan came to %d", getppid());
    _exit(12);
}

static void mortal_body(int number) {
    pid_t child = MUST(fork());
    if (child == 0) mourner_body();
    worker_answer();
    while (worker_order()) worker_answer();
    _exit(number);
}

static void pdeathsig_set_up(void) {
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    mourner_pipes = worker_pipes();
    mortal = worker_start(mortal_body, 11);
    mourner = worker_made(&mourner_pipes, 0);
}

static void pdeathsig_step(void) {
    worker_step(&mortal);
    worker_step(&mourner);
}

static void pdeathsig_finish(void) {
    pdeathsig_step();
    worker_end(&mortal, 11);
    worker_finish(&mourner);
    int status = 0;
    CHECK(waitpid(-1, &status, 0) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 12, "the orphan ended with status %#x", status);
}

/* -- exit signals ------------------------------------------------------------------------------------------------------------------------ */

static const int exit_signals[] = {SIGUSR1, 0, SIGCHLD, 35};
static struct worker exiting[ARRAY_LEN(exit_signals)];

static void exiting_body(int number) {
    worker_answer();
    while (worker_order()) worker_answer();
    _exit(20 + number);
}

static void exit_signal_set_up(void) {
    signal_watch(SIGUSR1);
    signal_watch(SIGCHLD);
    signal_watch(35);
    for (size_t i = 0; i < ARRAY_LEN(exit_signals); i++) exiting[i] = worker_clone((unsigned long)exit_signals[i], exiting_body, (int)i);
}

static void exit_signal_step(void) {
    for (size_t i = 0; i < ARRAY_LEN(exit_signals); i++) worker_step(&exiting[i]);
    CHECK(!signals_seen[SIGUSR1] && !signals_seen[SIGCHLD] && !signals_seen[35], "a child's signal came while it lives");
}

static void exit_signal_finish(void) {
    for (size_t i = 0; i < ARRAY_LEN(exit_signals); i++) {
        bool usual = exit_signals[i] == SIGCHLD;
        CHECK(waitpid(exiting[i].pid, NULL, WNOHANG | (usual ? __WCLONE : 0)) == -1 && errno == ECHILD, "child %zu is of the other kind", i);
        CHECK(waitpid(exiting[i].pid, NULL, WNOHANG | (usual ? 0 : __WCLONE)) == 0, "child %zu has ended", i);
        worker_end(&exiting[i], 20 + (int)i);
    }
    signal_expect("parent", SIGUSR1, 1);
    signal_expect("parent", SIGCHLD, 1);
    signal_expect("parent", 35, 1);
}

/* -- vfork: a parent that waits until its child executes or ends --------------------------------------------------------------------------- */

static pid_t vfork_parent;
static struct worker vfork_child;

static void vfork_body(struct worker_pipes *pipes) {
    volatile int seen = 0;
    pid_t child = vfork();
    if (child == 0) {
        char order;
        (void)!write(pipes->answers[1], "!", 1);
        while (read(pipes->orders[0], &order, 1) == 1 && order == 's') {
            seen++; /* in the parent's memory */
            (void)!write(pipes->answers[1], "!", 1);
        }
        _exit(21);
    }
    CHECK(child > 0, "vfork: %s", strerror(errno));
    CHECK(seen > 0, "nothing is left of what the child wrote");
    worker_expect(child, 21);
    _exit(22);
}

static void vfork_set_up(void) {
    struct worker_pipes pipes = worker_pipes();
    vfork_parent = MUST(fork());
    if (vfork_parent == 0) vfork_body(&pipes);
    vfork_child = worker_made(&pipes, 0);
}

static void vfork_step(void) {
    worker_step(&vfork_child);
    CHECK(waitpid(vfork_parent, NULL, WNOHANG) == 0, "the parent does not wait for its child");
}

static void vfork_finish(void) {
    worker_finish(&vfork_child);
    worker_expect(vfork_parent, 22);
}

int main(int argc, char **argv) {
    static const struct part parts[] = {
        {"sessions", sessions_set_up, sessions_step, sessions_finish},
        {"zombies", zombies_set_up, zombies_step, zombies_finish},
        {"stopped", stopped_set_up, stopped_step, stopped_finish},
        {"dead-leader", dead_leader_set_up, dead_leader_step, dead_leader_finish},
        {"pdeathsig", pdeathsig_set_up, pdeathsig_step, pdeathsig_finish},
        {"exit-signal", exit_signal_set_up, exit_signal_step, exit_signal_finish},
        {"vfork", vfork_set_up, vfork_step, vfork_finish},
    };
    return tree_main(argc, argv, parts, ARRAY_LEN(parts));
}
