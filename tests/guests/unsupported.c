/*
 * One object that cannot be restored yet, in an otherwise plain job: `cr` must refuse it and say where and what it is.
 *
 *   unsupported DIR NAME
 *
 * DIR/say.where holds where it is: "fd N", "pid N", an address, or "thread N"; DIR/skipped.NAME exists if the machine does not
 * have the thing. `unsupported - list` prints the names. The job then just runs, and must run on unharmed.
 */
#include "guest.h"
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <signal.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static char where[64];
static const char *missing;

static void at_fd(int fd) {
    if (fd < 0) missing = strerror(errno);
    else snprintf(where, sizeof where, "fd %d", fd);
}

static void at_address(const void *address) {
    if (address == MAP_FAILED) missing = strerror(errno);
    else snprintf(where, sizeof where, "%lx", (unsigned long)address);
}

static int file_here(void) {
    char path[PATH_MAX];
    return MUST(open(guest_path(path, "file.txt"), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
}

/* A one-shot watch that has reported, of something that is not ready. */
static void make_epoll_spent(void) {
    struct epoll_event event = {EPOLLIN | EPOLLONESHOT, {0}};
    int set = MUST(epoll_create1(0)), inner = MUST(epoll_create1(0)), counter = MUST(eventfd(1, 0));
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, inner, &event));
    MUST(epoll_ctl(inner, EPOLL_CTL_ADD, counter, &(struct epoll_event){EPOLLIN, {0}}));
    MUST(epoll_wait(set, &event, 1, 1000));
    at_fd(set);
}
static void make_inotify_unread(void) {
    int fd = inotify_init1(0);
    if (fd >= 0) MUST(inotify_add_watch(fd, guest_dir, IN_CREATE));
    close(file_here());
    at_fd(fd);
}
static void make_inotify_gone(void) {
    char path[PATH_MAX];
    int held = file_here(), fd = inotify_init1(0);
    if (fd >= 0) MUST(inotify_add_watch(fd, guest_path(path, "file.txt"), IN_MODIFY));
    MUST(unlink(path));
    MUST(fcntl(held, F_GETFD));
    at_fd(fd);
}
static void make_fanotify(void) { at_fd(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY)); }
static void make_io_uring(void) {
    struct io_uring_params parameters = {0};
    at_fd((int)syscall(SYS_io_uring_setup, 4, &parameters));
}
static void make_userfaultfd(void) { at_fd((int)syscall(SYS_userfaultfd, O_CLOEXEC | 1)); }

/* The other end is with a process outside of the job: an orphan. */
static void give_away(const int ends[2]) {
    pid_t guest = getpid(), between = MUST(fork());
    if (between == 0) {
        if (fork() == 0) {
            setsid();
            close(ends[0]);
            while (kill(guest, 0) == 0) guest_sleep_ms_eintr(20);
        }
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0));
    MUST(close(ends[1]));
    at_fd(ends[0]);
}
static void make_outside_socket(void) {
    int ends[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    give_away(ends);
}

/* A range whose faults a process outside of the job answers: an orphan, which has the descriptor. */
static void make_userfaultfd_range(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
    struct uffdio_api api = {.api = UFFD_API};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0) {
        missing = strerror(errno);
        return;
    }
    void *at = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    struct uffdio_register range = {{(unsigned long)at, 4 * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    MUST(ioctl(fd, UFFDIO_REGISTER, &range));
    pid_t guest = getpid(), between = MUST(fork());
    if (between == 0) {
        if (fork() == 0) {
            setsid();
            while (kill(guest, 0) == 0) guest_sleep_ms_eintr(20);
        }
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0));
    MUST(close(fd));
    at_address(at);
}

static void make_perf(void) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_TASK_CLOCK};
    at_fd((int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
}
static void make_bpf(void) {
    union bpf_attr attributes = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
    at_fd((int)syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes));
}
static void make_pidfd(void) { at_fd((int)syscall(SYS_pidfd_open, getppid(), 0)); }
static int queue(void) {
    char name[32];
    snprintf(name, sizeof name, "/cr-guest-%d", getpid());
    int fd = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, NULL);
    if (fd >= 0) mq_unlink(name);
    at_fd(fd);
    return fd;
}
static void make_mqueue(void) {
    int fd = queue();
    if (fd >= 0) MUST(mq_send(fd, "hello", 5, 1));
}
static void make_mqueue_notify(void) {
    int fd = queue();
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCHLD};
    if (fd >= 0) MUST(mq_notify(fd, &event));
}
/* Data that nobody has open for reading. */
static void make_fifo_unread(void) {
    char path[PATH_MAX];
    MUST(mkfifo(guest_path(path, "fifo"), 0600));
    int both = MUST(open(path, O_RDWR)), writer = MUST(open(path, O_WRONLY));
    MUST(write(writer, "hello", 5));
    close(both);
    at_fd(writer);
}
/* Signals somebody who is not of the job. */
static void make_owner(void) {
    int ends[2];
    MUST(pipe(ends));
    MUST(fcntl(ends[0], F_SETOWN, getppid()));
    at_fd(ends[0]);
}
static void make_device(void) { at_fd(open("/dev/kmsg", O_RDONLY | O_NONBLOCK)); }
static void make_tun(void) { at_fd(open("/dev/net/tun", O_RDWR)); }
/* The other end is with a process outside of the job: an orphan. */
static void make_pty(void) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    if (master >= 0 && unlockpt(master) == 0) {
        int terminal = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
        pid_t guest = getpid(), between = MUST(fork());
        if (between == 0) {
            if (fork() == 0) {
                setsid();
                close(master);
                while (kill(guest, 0) == 0) guest_sleep_ms_eintr(20);
            }
            _exit(0);
        }
        MUST(waitpid(between, NULL, 0));
        MUST(close(terminal));
    }
    at_fd(master);
}
static void make_proc_file(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", getppid());
    at_fd(open(path, O_RDONLY));
}
static void make_namespace(void) {
    int own = MUST(open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC));
    if (unshare(CLONE_NEWUTS) != 0) {
        missing = strerror(errno);
        return;
    }
    at_fd(open("/proc/self/ns/uts", O_RDONLY));
    MUST(setns(own, 0));
    close(own);
}

static void make_sysv_huge(void) {
    int id = shmget(IPC_PRIVATE, 2 << 20, IPC_CREAT | SHM_HUGETLB | 0600);
    void *at = id < 0 ? MAP_FAILED : shmat(id, NULL, 0);
    at_address(at);
    if (id >= 0) shmctl(id, IPC_RMID, NULL);
}

/* The memory of a device: here the ring buffer of a performance counter. */
static void make_device_mapping(void) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_TASK_CLOCK};
    int fd = (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
    if (fd < 0) {
        missing = strerror(errno);
        return;
    }
    at_address(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
}

static void make_secret_mapping(void) {
    int fd = (int)syscall(447 /* memfd_secret */, 0);
    if (fd < 0 || ftruncate(fd, PAGE) != 0) {
        missing = strerror(errno);
        return;
    }
    at_address(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
}

/* The test makes standard input a pipe whose other end it holds itself. */
static void make_outside_pipe(void) {
    struct stat stat;
    MUST(fstat(0, &stat));
    if (!S_ISFIFO(stat.st_mode)) missing = "standard input is not a pipe";
    /* As a standard stream it would become that of the restore. */
    MUST(dup2(0, 7));
    int null = open("/dev/null", O_RDONLY);
    MUST(dup2(null, 0));
    close(null);
    at_fd(7);
}

static const struct unsupported {
    const char *name;
    void (*make)(void);
} all[] = {
    {"epoll-spent", make_epoll_spent}, {"inotify-unread", make_inotify_unread},
    {"inotify-gone", make_inotify_gone}, {"fanotify", make_fanotify},
    {"namespace", make_namespace},
    {"outside-socket", make_outside_socket},
    {"io_uring", make_io_uring},     {"userfaultfd", make_userfaultfd},
    {"userfaultfd-range", make_userfaultfd_range},
    {"perf", make_perf},             {"bpf", make_bpf},
    {"pidfd", make_pidfd},           {"mqueue", make_mqueue},
    {"mqueue-notify", make_mqueue_notify}, {"fifo-unread", make_fifo_unread},
    {"owner", make_owner},
    {"device", make_device},         {"tun", make_tun},
    {"pty", make_pty},               {"proc-file", make_proc_file},
    {"sysv-huge", make_sysv_huge},   {"device-mapping", make_device_mapping},
    {"secret-mapping", make_secret_mapping}, {"outside-pipe", make_outside_pipe},
};

int main(int argc, char **argv) {
    if (argc >= 3 && strcmp(argv[2], "list") == 0) {
        for (size_t i = 0; i < ARRAY_LEN(all); i++) printf("%s\n", all[i].name);
        return 0;
    }
    guest_start(argc, argv);
    const struct unsupported *object = NULL;
    for (size_t i = 0; argc >= 3 && i < ARRAY_LEN(all); i++)
        if (strcmp(all[i].name, argv[2]) == 0) object = &all[i];
    CHECK(object, "usage: unsupported DIR NAME");
    object->make();
    if (missing) guest_skip(object->name, "%s", missing);
    else guest_link("say.where", where);
    guest_ready();
    while (!guest_finishing()) {
        guest_step();
        guest_sleep_ms(10);
    }
    guest_ok();
}
