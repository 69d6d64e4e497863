// Runs a command for which the kernel has no nftables: asked for a netlink socket to netfilter, it says that it has no such protocol.
// `no_nftables COMMAND ARGUMENT…`
#include <errno.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
// Goes on where the word is so, and lets the call be made where it is not.
#define ONLY(value, to_end) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, to_end)

int main(int argc, char **argv)
{
    struct sock_filter filter[] = {
        LOAD(nr),
        ONLY(SYS_socket, 5),
        LOAD(args[0]),
        ONLY(AF_NETLINK, 3),
        LOAD(args[2]),
        ONLY(NETLINK_NETFILTER, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPROTONOSUPPORT),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("no_nftables");
        return 1;
    }
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    return 1;
}
