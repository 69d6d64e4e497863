/*
 * A client of somebody outside of the job: `external DIR PATH` or `external DIR @ABSTRACT`.
 *
 * It is connected all the time, and talks only when it is told to: on "go.N" it sends N and expects it back, and says so by
 * DIR/say.N. On "go.7" it does not read the answer until "go.8".
 */
#include "guest.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static int server;

static void hear(uint64_t expected) {
    uint64_t got = 0;
    ssize_t length = read(server, &got, sizeof got);
    CHECK(length == sizeof got && got == expected, "%zd bytes, %lu instead of %lu (%s)", length, got, expected, strerror(errno));
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    CHECK(argc > 2, "connected to whom?");
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, argv[2], sizeof at.sun_path - 1);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(at.sun_path));
    if (at.sun_path[0] == '@') at.sun_path[0] = 0;
    server = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    MUST(connect(server, (struct sockaddr *)&at, length));
    int twin = MUST(dup(server));
    guest_ready();
    for (uint64_t next = 1; !guest_finishing();) {
        char name[32];
        snprintf(name, sizeof name, "go.%lu", next);
        if (guest_has(name)) {
            if (next != 8) MUST(write(server, &next, sizeof next));
            if (next != 7) hear(next == 8 ? 7 : next);
            snprintf(name, sizeof name, "say.%lu", next++);
            guest_link(name, "done");
        }
        guest_step();
        guest_sleep_ms(2);
    }
    CHECK(fcntl(server, F_GETFD) == FD_CLOEXEC && fcntl(twin, F_GETFD) == 0, "the descriptors' flags");
    uint64_t last = 99;
    MUST(write(twin, &last, sizeof last));
    hear(last);
    guest_ok();
}
