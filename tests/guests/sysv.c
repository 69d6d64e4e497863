/*
 * System V IPC: shared memory, semaphores with undo, message queues; used by a process and its children, some of which wait.
 *
 *   sysv DIR             the job; DIR/say.shm.NAME, say.sem.NAME, say.msg.NAME hold the ids of its objects
 *   sysv DIR --hold ID   somebody else, who attaches that segment
 *   sysv DIR --use ID    somebody else, who sends a message to that queue, and lives on
 *   sysv DIR --take KEY  somebody else, who makes a segment with that key
 *   sysv DIR --make      somebody else, who makes a set and a queue and does not use them; DIR/say.sem.made, DIR/say.msg.made
 *   sysv DIR --reuse PID somebody else, whose child with that number makes a queue, uses it and ends; DIR/say.msg.reused
 */
#include "guest.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PAGES = 64, ODD = 100, VALUES = 5, MESSAGES = 12, TEXT = 8192 };

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

struct message {
    long type;
    unsigned char text[TEXT];
};

/* The first page of the keyed segment. */
static struct shared {
    volatile int finish, holder_done, sender_said;
    volatile uint64_t rounds;
    volatile int held[2]; /* what the holder has taken with SEM_UNDO */
} *shared;

static key_t base;
static int keyed, private, loose, foreign, set, fresh_set, queue, full, fresh, left, quiet;
static char *first, *second, *gone;
static uint64_t seeds[PAGES], gone_seed, loose_seed, random_state = 7;
static struct {
    long type;
    size_t length;
    uint64_t seed;
} model[MESSAGES];
static int modelled;
static pid_t holder, taker, receiver, sender, adder;

static void say(const char *kind, const char *name, int id) {
    char link[64], text[32];
    snprintf(link, sizeof link, "say.%s.%s", kind, name);
    snprintf(text, sizeof text, "%d", id);
    guest_link(link, text);
}

static struct shmid_ds segment(int id) {
    struct shmid_ds all;
    MUST(shmctl(id, IPC_STAT, &all));
    return all;
}

static struct msqid_ds queue_of(int id) {
    struct msqid_ds all;
    MUST(msgctl(id, IPC_STAT, &all));
    return all;
}

static int value(int number) { return MUST(semctl(set, number, GETVAL)); }

static int operate(int number, int add, int flags) {
    struct sembuf operation = {(unsigned short)number, (short)add, (short)flags};
    return semop(set, &operation, 1);
}

/* -- children --------------------------------------------------------------------------------------------------------------- */

static void hold(void) {
    MUST(operate(2, 4, SEM_UNDO));
    MUST(operate(0, -7, SEM_UNDO));
    shared->held[0] = 7;
    for (int up = 0; !shared->finish; up = !up) {
        int change = up ? 1 : -1;
        MUST(operate(0, change, SEM_UNDO));
        shared->held[0] -= change;
        shared->rounds++;
        usleep(1000);
    }
    shared->holder_done = 1;
    for (;;) pause();
}

/* What it added was taken by its parent: there is less than what will be taken back. */
static void add(void) {
    MUST(operate(3, 5, SEM_UNDO));
    MUST(operate(4, -32767, SEM_UNDO));
    for (;;) pause();
}

static void take(void) { _exit(operate(1, -1, 0) == 0 ? 21 : 1); }

static void receive(void) {
    struct message message;
    ssize_t got = msgrcv(queue, &message, TEXT, 4242, 0);
    _exit(got == 3 && memcmp(message.text, "end", 3) == 0 ? 22 : 1);
}

static void send_late(void) {
    struct message message = {.type = 99, .text = "late"};
    shared->sender_said = 1;
    _exit(msgsnd(full, &message, 5, 0) == 0 ? 23 : 1);
}

static pid_t child(void (*body)(void)) {
    pid_t pid = MUST(fork());
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        body();
        _exit(1);
    }
    return pid;
}

static void expect_end(pid_t pid, int code) {
    int status = 0;
    MUST(waitpid(pid, &status, 0));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code, "child %d ended with status %#x instead of exit code %d", pid, status, code);
}

/* -- shared memory ---------------------------------------------------------------------------------------------------------- */

static void memory_set_up(void) {
    keyed = MUST(shmget(base, PAGES * PAGE + ODD, IPC_CREAT | IPC_EXCL | 0600));
    say("shm", "keyed", keyed);
    private = MUST(shmget(IPC_PRIVATE, 3 * PAGE, IPC_CREAT | 0640));
    say("shm", "private", private);
    loose = MUST(shmget(base + 1, 2 * PAGE, IPC_CREAT | IPC_EXCL | 0600));
    say("shm", "loose", loose);
    MUST(setresgid(-1, 4, -1));
    MUST(setresuid(-1, 3, -1));
    foreign = shmget(base + 2, PAGE, IPC_CREAT | IPC_EXCL | 0666);
    MUST(setresuid(-1, 0, -1));
    MUST(setresgid(-1, 0, -1));
    MUST(prctl(PR_SET_DUMPABLE, 1));
    MUST(foreign);
    say("shm", "foreign", foreign);

    first = MUST(shmat(keyed, NULL, 0));
    shared = (struct shared *)first;
    second = MUST(shmat(keyed, NULL, SHM_RDONLY));
    MUST(munmap(second + 8 * PAGE, 4 * PAGE));
    MUST(mprotect(first + 20 * PAGE, PAGE, PROT_READ));
    gone = MUST(shmat(private, NULL, 0));
    MUST(shmctl(private, IPC_RMID, NULL));
    struct shmid_ds all = segment(loose);
    all.shm_perm.uid = 1;
    all.shm_perm.gid = 2;
    all.shm_perm.mode = 0644;
    MUST(shmctl(loose, IPC_SET, &all));
    if (shmctl(loose, SHM_LOCK, NULL) != 0) guest_skip("shm-lock", "%s", strerror(errno));
}

static void loose_write(void) {
    char *at = MUST(shmat(loose, NULL, 0));
    loose_seed = random_next(&random_state) | 1;
    page_fill(at + PAGE, loose_seed);
    MUST(shmdt(at));
}

static void memory_step(void) {
    size_t page = 1 + random_below(&random_state, PAGES - 1);
    if (page != 20) {
        /* Each one written before stays as it was; some become zero again. */
        seeds[page] = guest_steps % 5 == 4 ? 0 : random_next(&random_state) | 1;
        page_fill(first + page * PAGE, seeds[page]);
    }
    gone_seed = random_next(&random_state) | 1;
    page_fill(gone + PAGE, gone_seed);
    if (guest_steps % 8 == 0) loose_write();
}

static void memory_check(void) {
    for (size_t page = 1; page < PAGES; page++) {
        long at = page_difference(first + page * PAGE, seeds[page]);
        CHECK(at < 0, "page %zu of the keyed segment differs at %ld", page, at);
        if (page >= 8 && page < 12) continue;
        CHECK(page_difference(second + page * PAGE, seeds[page]) < 0, "page %zu of the second attachment differs", page);
    }
    CHECK(memcmp(first + PAGES * PAGE, "odd", 4) == 0, "the last bytes of the keyed segment");
    CHECK(page_difference(gone + PAGE, gone_seed) < 0 && page_difference(gone, 0) < 0, "the removed segment");
    struct shmid_ds all = segment(keyed);
    /* Each mapping counts: three of the first attachment, two of the second; each of five children has as many. */
    CHECK(all.shm_nattch == 6 * 5, "the keyed segment is attached %lu times", all.shm_nattch);
    CHECK(all.shm_segsz == PAGES * PAGE + ODD && all.shm_perm.__key == base, "the keyed segment: size %zu, key %x", all.shm_segsz, all.shm_perm.__key);
    CHECK(all.shm_cpid == getpid(), "the keyed segment was made by %d", all.shm_cpid);
    CHECK(shmget(base, 0, 0) == keyed, "the key leads elsewhere");
    all = segment(private);
    CHECK(all.shm_nattch == 6 && (all.shm_perm.mode & 07777) == (01000 | 0640), "the removed segment: attached %lu times, mode %o",
          all.shm_nattch, all.shm_perm.mode);
    all = segment(loose);
    CHECK(all.shm_nattch == 0 && all.shm_perm.uid == 1 && all.shm_perm.gid == 2 && all.shm_perm.cuid == 0, "the loose segment: owner %d:%d",
          all.shm_perm.uid, all.shm_perm.gid);
    unsigned locked = guest_has("skipped.shm-lock") ? 0 : 02000;
    CHECK((all.shm_perm.mode & 07777) == (locked | 0644), "the loose segment has mode %o", all.shm_perm.mode);
    all = segment(foreign);
    CHECK(all.shm_perm.cuid == 3 && all.shm_perm.cgid == 4 && all.shm_perm.uid == 3 && all.shm_cpid == getpid(), "the foreign segment: made by %d:%d",
          all.shm_perm.cuid, all.shm_perm.cgid);
    char *at = MUST(shmat(loose, NULL, SHM_RDONLY));
    CHECK(page_difference(at + PAGE, loose_seed) < 0 && page_difference(at, 0) < 0, "the loose segment's content");
    MUST(shmdt(at));
    char maps[1 << 16], wanted[64];
    guest_read_file("/proc/self/maps", maps, sizeof maps);
    snprintf(wanted, sizeof wanted, "%lx-%lx r--s", (unsigned long)second, (unsigned long)(second + 8 * PAGE));
    CHECK(strstr(maps, wanted), "the second attachment is not %s", wanted);
    CHECK(mprotect(second, PAGE, PROT_READ | PROT_WRITE) != 0 && errno == EACCES, "the read-only attachment can be made writable");
    snprintf(wanted, sizeof wanted, "%lx-%lx r--s", (unsigned long)(first + 20 * PAGE), (unsigned long)(first + 21 * PAGE));
    CHECK(strstr(maps, wanted), "the protected page is not %s", wanted);
}

/* -- semaphores ------------------------------------------------------------------------------------------------------------- */

static void semaphores_set_up(void) {
    set = MUST(semget(base, VALUES, IPC_CREAT | IPC_EXCL | 0600));
    say("sem", "keyed", set);
    unsigned short values[VALUES] = {50, 0, 10, 0, 32767};
    MUST(semctl(set, 0, SETALL, (union semun){.array = values}));
    fresh_set = MUST(semget(IPC_PRIVATE, 3, IPC_CREAT | 0606));
    say("sem", "fresh", fresh_set);
}

static void semaphores_check(void) {
    CHECK(value(0) == 50 - shared->held[0], "semaphore 0 is %d, %d are held", value(0), shared->held[0]);
    CHECK(semctl(set, 0, GETPID) == holder, "%d has operated last on semaphore 0", semctl(set, 0, GETPID));
    CHECK(semctl(set, 3, GETPID) == getpid(), "%d has operated last on semaphore 3", semctl(set, 3, GETPID));
    /* Who waited may take a moment to wait again. */
    for (int i = 0; i < 400 && semctl(set, 1, GETNCNT) != 1; i++) guest_sleep_ms(5);
    int status = 0;
    CHECK(waitpid(taker, &status, WNOHANG) == 0, "the taker did not wait: status %#x", status);
    CHECK(semctl(set, 1, GETNCNT) == 1, "%d wait", semctl(set, 1, GETNCNT));
    CHECK(value(1) == 0 && value(2) == 14 && value(3) == 1 && value(4) == 0, "values %d %d %d %d", value(1), value(2), value(3), value(4));
    struct semid_ds all;
    MUST(semctl(fresh_set, 0, IPC_STAT, (union semun){.buf = &all}));
    CHECK(all.sem_nsems == 3 && (all.sem_perm.mode & 0777) == 0606, "the fresh set: %lu, mode %o", all.sem_nsems, all.sem_perm.mode);
    CHECK(semctl(fresh_set, 1, GETVAL) == 0 && semctl(fresh_set, 1, GETPID) == 0, "the fresh set was used");
    int held = shared->held[0], before = value(0);
    kill(holder, SIGKILL);
    MUST(waitpid(holder, NULL, 0));
    CHECK(value(0) == before + held && value(0) == 50, "semaphore 0 is %d after the holder's end, not %d", value(0), before + held);
    CHECK(value(2) == 10, "semaphore 2 is %d after the holder's end", value(2));
    kill(adder, SIGKILL);
    MUST(waitpid(adder, NULL, 0));
    CHECK(value(3) == 0 && value(4) == 32767, "%d and %d after the adder's end", value(3), value(4));
    MUST(operate(1, 1, 0));
    expect_end(taker, 21);
    /* Our own: at the end of a child nothing of ours is undone, and a look by itself changes nothing. */
    MUST(semctl(set, 0, IPC_RMID));
    MUST(semctl(fresh_set, 0, IPC_RMID));
}

/* -- queues ----------------------------------------------------------------------------------------------------------------- */

static void message_fill(struct message *message, uint64_t seed, size_t length) {
    for (size_t i = 0; i < length; i += 8) {
        uint64_t word = random_next(&seed);
        memcpy(message->text + i, &word, length - i < 8 ? length - i : 8);
    }
}

static void message_send(void) {
    static struct message message;
    size_t length = modelled == 3 ? 0 : random_below(&random_state, 900);
    if (modelled == 5) length = 4000;
    uint64_t seed = random_next(&random_state);
    message.type = 1 + (long)random_below(&random_state, 3);
    message_fill(&message, seed, length);
    MUST(msgsnd(queue, &message, length, IPC_NOWAIT));
    model[modelled].type = message.type;
    model[modelled].length = length;
    model[modelled++].seed = seed;
}

static void message_expect(int at, long type) {
    static struct message message, wanted;
    ssize_t got = msgrcv(queue, &message, TEXT, type, IPC_NOWAIT);
    CHECK(got == (ssize_t)model[at].length && message.type == model[at].type, "message %d has type %ld and length %zd, not %ld and %zu (%s)", at,
          message.type, got, model[at].type, model[at].length, strerror(errno));
    message_fill(&wanted, model[at].seed, model[at].length);
    CHECK(memcmp(message.text, wanted.text, model[at].length) == 0, "message %d has another text", at);
    memmove(model + at, model + at + 1, sizeof *model * (size_t)(--modelled - at));
}

static void queues_set_up(void) {
    queue = MUST(msgget(base, IPC_CREAT | IPC_EXCL | 0600));
    say("msg", "keyed", queue);
    full = MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
    say("msg", "full", full);
    fresh = MUST(msgget(base + 1, IPC_CREAT | IPC_EXCL | 0622));
    say("msg", "fresh", fresh);
    left = MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
    say("msg", "left", left);
    quiet = MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
    say("msg", "quiet", quiet);
    struct msqid_ds all = queue_of(full);
    all.msg_qbytes = 10;
    MUST(msgctl(full, IPC_SET, &all));
    struct message message = {.type = 5, .text = "12345678"};
    MUST(msgsnd(full, &message, 8, 0));
    MUST(msgsnd(quiet, &message, 8, 0));
    MUST(msgrcv(quiet, &message, 8, 0, 0));
    /* By somebody whose end nobody remembers. */
    pid_t pid = MUST(fork());
    if (pid == 0) {
        struct message last = {.type = 77, .text = "left behind"};
        _exit(msgsnd(left, &last, 11, 0) != 0);
    }
    expect_end(pid, 0);
    for (int i = 0; i < MESSAGES - 2; i++) message_send();
}

static void queues_step(void) {
    if (modelled > 4 && guest_steps % 2) message_expect(0, 0);
    /* The oldest of a type. */
    int at = 0;
    long type = 1 + (long)random_below(&random_state, 3);
    while (at < modelled && model[at].type != type) at++;
    if (at < modelled && modelled > 6) message_expect(at, type);
    while (modelled < 8) message_send();
}

static void queues_check(void) {
    struct msqid_ds all = queue_of(queue);
    CHECK(all.msg_qnum == (unsigned)modelled && all.msg_lspid == getpid() && all.msg_lrpid == getpid(),
          "%lu messages, the last sent by %d, received by %d", all.msg_qnum, all.msg_lspid, all.msg_lrpid);
    while (modelled) message_expect(0, 0);
    struct message message = {.type = 4242, .text = "end"};
    MUST(msgsnd(queue, &message, 3, 0));
    expect_end(receiver, 22);
    all = queue_of(full);
    CHECK(all.msg_qbytes == 10 && all.msg_qnum == 1 && all.msg_lrpid == 0, "the full queue: %lu messages, %lu bytes", all.msg_qnum, all.msg_qbytes);
    CHECK(msgrcv(full, &message, TEXT, 0, IPC_NOWAIT) == 8 && memcmp(message.text, "12345678", 8) == 0, "the full queue's message");
    expect_end(sender, 23);
    CHECK(msgrcv(full, &message, TEXT, 0, IPC_NOWAIT) == 5 && message.type == 99, "the late message");
    all = queue_of(quiet);
    CHECK(all.msg_lspid == getpid() && all.msg_lrpid == getpid(), "the quiet queue: last %d, %d", all.msg_lspid, all.msg_lrpid);
    all = queue_of(fresh);
    CHECK(all.msg_qnum == 0 && all.msg_lspid == 0 && (all.msg_perm.mode & 0777) == 0622 && all.msg_perm.__key == base + 1, "the fresh queue");
    CHECK(msgrcv(left, &message, TEXT, 0, IPC_NOWAIT) == 11 && memcmp(message.text, "left behind", 11) == 0, "what a dead process left");
    int all_queues[] = {queue, full, fresh, left, quiet};
    for (size_t i = 0; i < ARRAY_LEN(all_queues); i++) MUST(msgctl(all_queues[i], IPC_RMID, NULL));
}

/* -- somebody else ---------------------------------------------------------------------------------------------------------- */

static void be_somebody_else(int argc, char **argv) {
    long hold_it = guest_option(argc, argv, "hold", -1), use = guest_option(argc, argv, "use", -1), key = guest_option(argc, argv, "take", 0);
    long make = guest_option(argc, argv, "make", 0);
    pid_t number = (pid_t)guest_option(argc, argv, "reuse", 0);
    if (hold_it < 0 && use < 0 && !key && !make && !number) return;
    if (hold_it >= 0) MUST(shmat((int)hold_it, NULL, SHM_RDONLY));
    if (use >= 0) {
        struct message message = {.type = 12345};
        MUST(msgsnd((int)use, &message, 1, 0));
    }
    if (key) say("shm", "taken", MUST(shmget((key_t)key, PAGE, IPC_CREAT | IPC_EXCL | 0600)));
    if (make) {
        say("sem", "made", MUST(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600)));
        say("msg", "made", MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600)));
    }
    if (number) {
        struct clone_args how = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&number, .set_tid_size = 1};
        pid_t pid = (pid_t)MUST(syscall(SYS_clone3, &how, sizeof how));
        if (pid == 0) {
            int made = MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
            struct message message = {.type = 1};
            MUST(msgsnd(made, &message, 1, 0));
            say("msg", "reused", made);
            _exit(0);
        }
        expect_end(pid, 0);
    }
    guest_ready();
    for (;;) pause();
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    be_somebody_else(argc, argv);
    base = 0x43520000 | (getpid() & 0xfff) << 4;
    char text[32];
    snprintf(text, sizeof text, "%d", base);
    guest_link("say.key", text);
    memory_set_up();
    semaphores_set_up();
    queues_set_up();
    memcpy(first + PAGES * PAGE, "odd", 4);
    holder = child(hold);
    adder = child(add);
    taker = child(take);
    receiver = child(receive);
    sender = child(send_late);
    while (value(3) != 5 || value(4) != 0 || semctl(set, 1, GETNCNT) != 1 || !shared->sender_said || !shared->rounds) guest_sleep_ms(1);
    MUST(operate(3, -4, 0));
    guest_sleep_ms(20);
    loose_write();
    guest_ready();
    while (!guest_finishing()) {
        memory_step();
        queues_step();
        guest_step();
        guest_sleep_ms(2);
    }
    shared->finish = 1;
    for (int i = 0; i < 1000 && !shared->holder_done; i++) guest_sleep_ms(5);
    CHECK(shared->holder_done, "the holder does not answer");
    memory_check();
    semaphores_check();
    queues_check();
    /* Attachments are found where they were. */
    MUST(shmdt(second));
    MUST(shmdt(first));
    MUST(shmdt(gone));
    CHECK(shmctl(private, IPC_STAT, &(struct shmid_ds){0}) != 0 && (errno == EINVAL || errno == EIDRM), "the removed segment is still there");
    CHECK(segment(keyed).shm_nattch == 0, "the keyed segment is attached %lu times", segment(keyed).shm_nattch);
    int segments[] = {keyed, loose, foreign};
    for (size_t i = 0; i < ARRAY_LEN(segments); i++) MUST(shmctl(segments[i], IPC_RMID, NULL));
    guest_ok();
}
