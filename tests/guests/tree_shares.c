/*
 * What processes share with each other besides memory: open file descriptions, and what clone(2) can be told to share.
 *
 *   tree_shares DIR PART        (`tree_shares - list` prints the parts)
 */
#include "tree.h"
#include <linux/kcmp.h>

static bool same(pid_t a, pid_t b, int what, int fd_a, int fd_b) {
    return MUST((int)syscall(SYS_kcmp, a, b, what, (unsigned long)fd_a, (unsigned long)fd_b)) == 0;
}

/* -- shared-fds: open file descriptions that several processes have ----------------------------------------------------------------- */

enum { WRITERS = 4, AWAY = 700 }; /* AWAY: a number that each writer has a duplicate under, plus its own */

static int shared_file, shared_log, shared_in;
static struct worker writers[WRITERS];
static uint64_t records;

static uint64_t record(uint64_t number) {
    uint64_t state = number;
    return random_next(&state);
}

static void writer_body(int number) {
    char path[PATH_MAX];
    int twice = MUST(fcntl(shared_file, F_DUPFD_CLOEXEC, AWAY + number));
    int own = MUST(open(guest_path(path, "shared"), O_RDONLY | O_CLOEXEC)); /* another description of the same file */
    if (number % 2) MUST(fcntl(shared_log, F_SETFD, FD_CLOEXEC));
    uint64_t steps = 0, value;
    char line[32];
    worker_answer();
    while (worker_order()) {
        uint64_t next = steps * WRITERS + (uint64_t)number;
        steps++;
        value = record(next);
        CHECK(lseek(shared_file, 0, SEEK_CUR) == (off_t)(next * 8), "writer %d: the offset is %ld before record %lu", number,
              (long)lseek(shared_file, 0, SEEK_CUR), next);
        CHECK(write(next % 3 ? shared_file : twice, &value, sizeof value) == 8, "write: %s", strerror(errno));
        CHECK(pread(own, &value, 8, (off_t)(next * 8)) == 8 && value == record(next), "writer %d does not see its record", number);
        int length = snprintf(line, sizeof line, "%d %lu\n", number, next);
        CHECK(write(shared_log, line, (size_t)length) == length, "write to the log: %s", strerror(errno));
        CHECK(read(shared_in, &value, 8) == 8 && value == record(next), "writer %d reads another record than %lu", number, next);
        worker_answer();
    }
    CHECK(same(getpid(), tree_root, KCMP_FILE, shared_file, shared_file) && same(getpid(), getpid(), KCMP_FILE, shared_file, twice),
          "writer %d: descriptors do not share their description any more", number);
    CHECK(same(getpid(), tree_root, KCMP_FILE, shared_log, shared_log) && same(getpid(), tree_root, KCMP_FILE, shared_in, shared_in),
          "writer %d: the log or the input is not shared any more", number);
    CHECK(!same(getpid(), getpid(), KCMP_FILE, shared_file, own), "writer %d: two descriptions have become one", number);
    CHECK(!same(getpid(), tree_root, KCMP_FILES, 0, 0), "writer %d has its parent's table", number);
    CHECK(fcntl(shared_log, F_GETFD) == (number % 2 ? FD_CLOEXEC : 0), "writer %d: close-on-exec has changed", number);
    CHECK(fcntl(shared_log, F_GETFL) & O_APPEND, "the log does not append any more");
    CHECK(fcntl(shared_in, F_GETFL) & O_NONBLOCK, "a flag that another process set is not seen");
    _exit(number + 1);
}

static void shared_fds_set_up(void) {
    char path[PATH_MAX];
    shared_file = MUST(open(guest_path(path, "shared"), O_CREAT | O_RDWR | O_TRUNC, 0600));
    shared_log = MUST(open(guest_path(path, "log"), O_CREAT | O_WRONLY | O_APPEND | O_TRUNC, 0600));
    int in = MUST(open(guest_path(path, "in"), O_CREAT | O_WRONLY | O_TRUNC, 0600));
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t value = record(i);
        MUST(write(in, &value, sizeof value));
    }
    MUST(close(in));
    shared_in = MUST(open(guest_path(path, "in"), O_RDONLY));
    for (int i = 0; i < WRITERS; i++) writers[i] = worker_start(writer_body, i);
    MUST(fcntl(shared_in, F_SETFL, O_NONBLOCK)); /* of the description: all see it */
}

static void shared_fds_step(void) {
    if (records + WRITERS > 20000) return; /* all is read */
    for (int i = 0; i < WRITERS; i++) worker_step(&writers[i]);
    records += WRITERS;
}

static void shared_fds_finish(void) {
    uint64_t value;
    CHECK(lseek(shared_file, 0, SEEK_CUR) == (off_t)(records * 8), "the shared offset is wrong");
    CHECK(lseek(shared_in, 0, SEEK_CUR) == (off_t)(records * 8), "the shared offset of the input is wrong");
    MUST(lseek(shared_file, 0, SEEK_SET));
    for (uint64_t i = 0; i < records; i++)
        CHECK(read(shared_file, &value, 8) == 8 && value == record(i), "record %lu of the shared file is %lx", i, value);
    CHECK(read(shared_file, &value, 8) == 0, "the shared file is too long");
    char path[PATH_MAX], line[64];
    FILE *log = fopen(guest_path(path, "log"), "re");
    CHECK(log, "the log: %s", strerror(errno));
    for (uint64_t i = 0; i < records; i++) {
        unsigned long writer, number;
        CHECK(fgets(line, sizeof line, log) && sscanf(line, "%lu %lu", &writer, &number) == 2 && writer == i % WRITERS && number == i,
              "line %lu of the log is %s", i, line);
    }
    CHECK(!fgets(line, sizeof line, log), "the log has a line too many: %s", line);
    fclose(log);
    for (int i = 0; i < WRITERS; i++) worker_end(&writers[i], i + 1);
}

/* -- ring: five processes in a ring of pipes, with data in each -------------------------------------------------------------------- */

enum { RING = 5, IN_PIPE = 3 };

static int ring_pipes[RING][2]; /* pipe i leads from process i to the next */
static struct worker ring[RING];
static struct {
    uint64_t values[IN_PIPE + 1];
    int count;
} ring_model[RING]; /* what must be in each */

static void ring_body(int number) {
    int in = ring_pipes[(number + RING - 1) % RING][0], out = ring_pipes[number][1];
    for (int i = 0; i < RING; i++)
        for (int end = 0; end < 2; end++)
            if (ring_pipes[i][end] != in && ring_pipes[i][end] != out) MUST(close(ring_pipes[i][end]));
    uint64_t value;
    worker_answer();
    while (worker_order()) {
        pipe_get(in, &value, sizeof value);
        value = value * 3 + (uint64_t)number;
        pipe_put(out, &value, sizeof value);
        worker_answer();
    }
    /* Whoever finishes closes its end; nobody else may have it open. */
    MUST(close(out));
    worker_answer();
    while (worker_order()) {
        ssize_t got = read(in, &value, sizeof value);
        CHECK(got == sizeof value || got == 0, "ring: read: %zd, %s", got, strerror(errno));
        pipe_put(worker_self.answers, &value, sizeof value);
        if (got == 0) break;
    }
    _exit(number + 1);
}

static void ring_set_up(void) {
    for (int i = 0; i < RING; i++) {
        pipe_make(ring_pipes[i]);
        for (int k = 0; k < IN_PIPE; k++) {
            ring_model[i].values[ring_model[i].count++] = (uint64_t)(i * 100 + k);
            pipe_put(ring_pipes[i][1], &ring_model[i].values[k], 8);
        }
    }
    for (int i = 0; i < RING; i++) ring[i] = worker_start(ring_body, i);
    for (int i = 0; i < RING; i++) {
        MUST(close(ring_pipes[i][0]));
        MUST(close(ring_pipes[i][1]));
    }
}

static void ring_step(void) {
    for (int i = 0; i < RING; i++) {
        __typeof__(&ring_model[0]) in = &ring_model[(i + RING - 1) % RING], out = &ring_model[i];
        worker_step(&ring[i]);
        uint64_t value = in->values[0] * 3 + (uint64_t)i;
        memmove(in->values, in->values + 1, (size_t)--in->count * sizeof value);
        out->values[out->count++] = value;
    }
}

static void ring_finish(void) {
    char answer;
    for (int i = 0; i < RING; i++) {
        worker_finish(&ring[i]);
        pipe_get(ring[i].answers, &answer, 1);
    }
    for (int i = 0; i < RING; i++) {
        uint64_t value, *in = ring_model[(i + RING - 1) % RING].values;
        for (int k = 0; k <= IN_PIPE; k++) {
            pipe_put(ring[i].orders, "s", 1);
            pipe_get(ring[i].answers, &value, sizeof value);
            CHECK(k == IN_PIPE || value == in[k], "ring: value %d in pipe %d is %lu instead of %lu", k, i, value, in[k]);
        }
        worker_expect(ring[i].pid, i + 1); /* it saw the end of its pipe */
    }
}

/* -- clone-files: one table of descriptors ------------------------------------------------------------------------------------------ */

static struct worker files_child, files_parted;
static volatile int *files_board; /* shared memory: the last number opened; a flag for the one that parted */
static int files_last = -1;

static void files_body(int number) {
    char path[PATH_MAX];
    guest_path(path, "shared-table");
    worker_answer();
    while (worker_order()) {
        if (files_board[0] >= 0) MUST(close(files_board[0]));
        files_board[0] = MUST(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        worker_answer();
    }
    CHECK(same(getpid(), tree_root, KCMP_FILES, 0, 0), "the table is not shared any more");
    CHECK(fcntl(files_board[1], F_GETFD) == 0, "the child does not see what its parent opened: %s", strerror(errno));
    MUST(close(files_board[1]));
    _exit(number);
}

static void files_parted_body(int number) {
    MUST(unshare(CLONE_FILES));
    worker_answer();
    while (worker_order()) worker_answer();
    CHECK(!same(getpid(), tree_root, KCMP_FILES, 0, 0), "it has its parent's table again");
    CHECK(fcntl(files_board[1], F_GETFD) == -1 && errno == EBADF, "it sees what others opened after it had parted");
    _exit(number);
}

static void clone_files_set_up(void) {
    files_board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(files_board != MAP_FAILED, "mmap: %s", strerror(errno));
    files_board[0] = -1;
    files_parted = worker_clone(CLONE_FILES | SIGCHLD, files_parted_body, 31);
    files_child = worker_clone(CLONE_FILES | SIGCHLD, files_body, 32);
}

static void clone_files_step(void) {
    worker_step(&files_child);
    worker_step(&files_parted);
    files_last = files_board[0];
    CHECK(fcntl(files_last, F_GETFD) == FD_CLOEXEC, "the parent does not see what its child opened: %s", strerror(errno));
}

static void clone_files_finish(void) {
    CHECK(same(getpid(), files_child.pid, KCMP_FILES, 0, 0), "the table is not shared any more");
    files_board[1] = MUST(open("/dev/null", O_RDONLY));
    worker_end(&files_parted, 31);
    worker_end(&files_child, 32);
    CHECK(fcntl(files_board[1], F_GETFD) == -1 && errno == EBADF, "what the child closed is open");
    CHECK(fcntl(files_last, F_GETFD) == FD_CLOEXEC, "what the child opened is gone");
}

/* -- clone-fs: one working directory, one umask ------------------------------------------------------------------------------------- */

static struct worker fs_child, fs_parted;

static void fs_body(int number) {
    uint64_t steps = 0;
    char path[PATH_MAX];
    worker_answer();
    while (worker_order()) {
        steps++;
        MUST(chdir(guest_path(path, steps % 2 ? "odd" : "even")));
        umask((mode_t)(steps % 64));
        worker_answer();
    }
    CHECK(same(getpid(), tree_root, KCMP_FS, 0, 0), "the working directory is not shared any more");
    MUST(chdir("/"));
    umask(0);
    _exit(number);
}

static void fs_parted_body(int number) {
    char path[PATH_MAX], now[PATH_MAX];
    MUST(unshare(CLONE_FS));
    MUST(chdir(guest_path(path, "even")));
    worker_answer();
    while (worker_order()) worker_answer();
    CHECK(getcwd(now, sizeof now) && strcmp(now, path) == 0, "the working directory is %s instead of %s", now, path);
    CHECK(!same(getpid(), tree_root, KCMP_FS, 0, 0), "it has its parent's working directory again");
    _exit(number);
}

static void clone_fs_set_up(void) {
    char path[PATH_MAX];
    (void)mkdir(guest_path(path, "odd"), 0755);
    (void)mkdir(guest_path(path, "even"), 0755);
    fs_parted = worker_clone(CLONE_FS | SIGCHLD, fs_parted_body, 33);
    fs_child = worker_clone(CLONE_FS | SIGCHLD, fs_body, 34);
}

static void clone_fs_check(void) {
    char path[PATH_MAX], now[PATH_MAX];
    CHECK(getcwd(now, sizeof now) && strcmp(now, guest_path(path, guest_steps % 2 ? "odd" : "even")) == 0,
          "the working directory after %lu steps is %s", guest_steps, now);
    mode_t mask = umask(0);
    umask(mask);
    CHECK(mask == guest_steps % 64, "the umask after %lu steps is %o", guest_steps, mask);
}

static void clone_fs_step(void) {
    if (guest_steps) clone_fs_check();
    worker_step(&fs_child);
    worker_step(&fs_parted);
}

static void clone_fs_finish(void) {
    char now[PATH_MAX];
    if (guest_steps) clone_fs_check();
    worker_end(&fs_parted, 33);
    worker_end(&fs_child, 34);
    CHECK(getcwd(now, sizeof now) && strcmp(now, "/") == 0, "the working directory is %s", now);
}

/* -- clone-vm: one address space, with and without one set of handlers ---------------------------------------------------------------- */

static struct vm_child {
    bool handlers; /* are shared too */
    volatile pid_t pid;
    volatile uint64_t steps;
    int orders[2], answers[2];
    char *stack;
} vm_children[] = {{.handlers = true}, {.handlers = false}};

static void vm_handler(int number) { (void)number; }

/* It has its creator's thread-local storage, errno included: a call that fails would disturb both. It makes only such as do not. */
static int vm_body(void *argument) {
    struct vm_child *self = argument;
    char order;
    self->pid = getpid();
    (void)!write(self->answers[1], "!", 1);
    while (read(self->orders[0], &order, 1) == 1 && order == 's') {
        self->steps++;
        struct sigaction action = {.sa_handler = self->steps % 2 ? vm_handler : SIG_IGN};
        if (sigaction(SIGUSR2, &action, NULL) != 0) _exit(1);
        (void)!write(self->answers[1], "!", 1);
    }
    if (getpid() != self->pid || getppid() != tree_root) _exit(2);
    syscall(SYS_exit_group, 35);
    return 0;
}

static void clone_vm_set_up(void) {
    for (size_t i = 0; i < ARRAY_LEN(vm_children); i++) {
        struct vm_child *child = &vm_children[i];
        char ready;
        pipe_make(child->orders);
        pipe_make(child->answers);
        child->stack = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        int flags = CLONE_VM | SIGCHLD | (child->handlers ? CLONE_SIGHAND : 0);
        MUST(clone(vm_body, child->stack + 16 * PAGE, flags, child));
        pipe_get(child->answers[0], &ready, 1);
    }
}

static void clone_vm_step(void) {
    for (size_t i = 0; i < ARRAY_LEN(vm_children); i++) {
        struct vm_child *child = &vm_children[i];
        uint64_t before = child->steps;
        char answer;
        pipe_put(child->orders[1], "s", 1);
        pipe_get(child->answers[0], &answer, 1);
        CHECK(child->steps == before + 1, "the parent does not see its child's steps");
        struct sigaction action;
        MUST(sigaction(SIGUSR2, NULL, &action));
        void (*wanted)(int) = vm_children[0].steps % 2 ? vm_handler : SIG_IGN; /* the second child has handlers of its own */
        CHECK(action.sa_handler == wanted, "the handler after %lu steps is %p", child->steps, (void *)action.sa_handler);
    }
}

static void clone_vm_finish(void) {
    for (size_t i = 0; i < ARRAY_LEN(vm_children); i++) {
        pid_t pid = vm_children[i].pid;
        CHECK(same(pid, tree_root, KCMP_VM, 0, 0), "child %zu has memory of its own", i);
        CHECK(same(pid, tree_root, KCMP_SIGHAND, 0, 0) == vm_children[i].handlers, "child %zu: the handlers are shared or not", i);
        CHECK(!same(pid, tree_root, KCMP_FILES, 0, 0) && !same(pid, tree_root, KCMP_FS, 0, 0), "child %zu shares too much", i);
        pipe_put(vm_children[i].orders[1], "f", 1);
        worker_expect(pid, 35);
    }
}

int main(int argc, char **argv) {
    static const struct part parts[] = {
        {"shared-fds", shared_fds_set_up, shared_fds_step, shared_fds_finish},
        {"ring", ring_set_up, ring_step, ring_finish},
        {"clone-files", clone_files_set_up, clone_files_step, clone_files_finish},
        {"clone-fs", clone_fs_set_up, clone_fs_step, clone_fs_finish},
        {"clone-vm", clone_vm_set_up, clone_vm_step, clone_vm_finish},
    };
    return tree_main(argc, argv, parts, ARRAY_LEN(parts));
}
