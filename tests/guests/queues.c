/*
 * POSIX message queues without messages in them: named, removed, of one process or two, waited on; and their attributes.
 */
#include "guest.h"
#include <mqueue.h>
#include <signal.h>
#include <sys/wait.h>

static void check_attributes(mqd_t queue, long messages, long bytes, long flags) {
    struct mq_attr is;
    MUST(mq_getattr(queue, &is));
    CHECK(is.mq_maxmsg == messages && is.mq_msgsize == bytes && is.mq_flags == flags && is.mq_curmsgs == 0,
          "%ld messages of %ld bytes, flags %lx, %ld are there", is.mq_maxmsg, is.mq_msgsize, is.mq_flags, is.mq_curmsgs);
}

/* By urgency, as they are received. */
static void send_and_receive(mqd_t to, mqd_t from) {
    MUST(mq_send(to, "low", 4, 1));
    MUST(mq_send(to, "high", 5, 9));
    char text[128];
    unsigned urgency;
    CHECK(mq_receive(from, text, sizeof text, &urgency) == 5 && urgency == 9 && strcmp(text, "high") == 0, "the urgent message");
    CHECK(mq_receive(from, text, sizeof text, &urgency) == 4 && urgency == 1 && strcmp(text, "low") == 0, "the other message");
}

/* For the test: `queues - send NAME`, `queues - unlink NAME`. */
static int act(const char *what, const char *name) {
    if (strcmp(what, "unlink") == 0) return mq_unlink(name) == 0 ? 0 : 1;
    mqd_t queue = mq_open(name, O_WRONLY);
    return queue >= 0 && mq_send(queue, "hello", 5, 1) == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "-") == 0) return act(argv[2], argv[3]);
    guest_start(argc, argv);
    char name[64], removed_name[64], ask_name[64];
    snprintf(name, sizeof name, "/cr-guest-%d", getpid());
    snprintf(removed_name, sizeof removed_name, "/cr-removed-%d", getpid());
    snprintf(ask_name, sizeof ask_name, "/cr-ask-%d", getpid());
    struct mq_attr small = {.mq_maxmsg = 3, .mq_msgsize = 100};
    mqd_t sender = mq_open(name, O_CREAT | O_EXCL | O_WRONLY, 0640, &small);
    if (sender < 0) {
        guest_skip("queues", "%s", strerror(errno));
        guest_ready();
        while (!guest_finishing()) {
            guest_step();
            guest_sleep_ms(2);
        }
        guest_ok();
    }
    mqd_t receiver = MUST(mq_open(name, O_RDONLY | O_NONBLOCK));
    small.mq_maxmsg = 5;
    mqd_t removed = MUST(mq_open(removed_name, O_CREAT | O_EXCL | O_RDWR, 0600, &small));
    mqd_t ask = MUST(mq_open(ask_name, O_CREAT | O_EXCL | O_RDWR, 0600, &small));
    MUST(mq_unlink(removed_name));
    send_and_receive(sender, receiver);
    pid_t child = MUST(fork());
    if (child == 0) {
        char text[128];
        unsigned urgency;
        ssize_t length = mq_receive(ask, text, sizeof text, &urgency);
        if (length == 6 && memcmp(text, "is it?", 6) == 0 && urgency == 7) mq_send(removed, "it is", 5, 8);
        for (;;) pause();
    }
    guest_sleep_ms(20);
    guest_ready();
    while (!guest_finishing()) {
        check_attributes(receiver, 3, 100, O_NONBLOCK);
        guest_step();
        guest_sleep_ms(2);
    }
    check_attributes(sender, 3, 100, 0);
    check_attributes(receiver, 3, 100, O_NONBLOCK);
    check_attributes(removed, 5, 100, 0);
    CHECK(fcntl(sender, F_GETFD) == FD_CLOEXEC && (fcntl(sender, F_GETFL) & O_ACCMODE) == O_WRONLY, "the sender's flags");
    char text[128];
    CHECK(mq_receive(receiver, text, sizeof text, NULL) == -1 && errno == EAGAIN, "something was received");
    CHECK(mq_receive(sender, text, sizeof text, NULL) == -1 && errno == EBADF, "the sender can receive");
    struct stat stat, named_stat;
    MUST(fstat(sender, &stat));
    CHECK((stat.st_mode & 07777) == 0640, "mode %o", stat.st_mode);
    mqd_t named = MUST(mq_open(name, O_RDONLY));
    MUST(fstat(named, &named_stat));
    CHECK(stat.st_ino == named_stat.st_ino, "another queue has the name");
    mq_close(named);
    send_and_receive(sender, receiver);
    MUST(fstat(removed, &stat));
    CHECK(stat.st_nlink == 0, "the removed queue has %lu names", stat.st_nlink);
    MUST(mq_send(ask, "is it?", 6, 7));
    unsigned urgency;
    CHECK(mq_receive(removed, text, sizeof text, &urgency) == 5 && urgency == 8 && memcmp(text, "it is", 5) == 0, "the child's answer");
    kill(child, SIGKILL);
    MUST(waitpid(child, NULL, 0));
    MUST(mq_unlink(name));
    MUST(mq_unlink(ask_name));
    guest_ok();
}
