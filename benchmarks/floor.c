/* What a lock daemon costs that does nothing but its system calls.

   floor SOCKET DIRECTORY CALLS

   It serves one connection, and answers each request of benchmarks.wires.LockdWire, one
   after the other. CALLS says what it does for a pair of acquire and release besides:

   none  nothing: a lock in memory
   made  open, lock, check and remove a file
   kept  lock, check and unlock a file that stays open, as for the next holder */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { NAME = 64, FILES = 4096 };

static struct { char name[NAME + 1]; int fd; } files[FILES];

static void need(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void lock(int fd, short type)
{
    struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_len = 1 };
    need(fcntl(fd, F_OFD_SETLK, &lock) == 0, "fcntl");
}

static int slot_of(const char *name)
{
    unsigned hash = 5381;
    for (int i = 0; i < NAME; i++)
        hash = hash * 33 + (unsigned char)name[i];
    for (unsigned i = hash % FILES;; i = (i + 1) % FILES)
        if (!*files[i].name || !memcmp(files[i].name, name, NAME))
            return i;
}

static void carry_out(int acquires, const char *name, const char *directory, int keeps)
{
    char path[4096];
    struct stat status;
    int slot = slot_of(name);
    snprintf(path, sizeof path, "%s/%.*s", directory, NAME, name);
    if (acquires) {
        if (!*files[slot].name || !keeps) {
            memcpy(files[slot].name, name, NAME);
            int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
            files[slot].fd = open(path, flags, 0600);
            need(files[slot].fd >= 0, "open");
            need(fstat(files[slot].fd, &status) == 0, "fstat");
        }
        lock(files[slot].fd, F_WRLCK);
        need(lstat(path, &status) == 0, "lstat");
    } else if (keeps) {
        lock(files[slot].fd, F_UNLCK);
    } else {
        need(lstat(path, &status) == 0, "lstat");
        need(unlink(path) == 0, "unlink");
        close(files[slot].fd);
    }
}

int main(int argc, char **argv)
{
    static const char answer[] = "\x94\x01\x00\xc0\x80"; /* [1, 0, nil, {}] */
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct epoll_event event = { .events = EPOLLIN };
    char request[4096];

    if (argc != 4)
        return 2;
    int works = strcmp(argv[3], "none"), keeps = !strcmp(argv[3], "kept");
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    need(listen(listener, 8) == 0, "listen");
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        need(client >= 0, "accept");
        need(epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event) == 0, "epoll_ctl");
        for (;;) {
            need(epoll_wait(epoll, &event, 1, -1) == 1, "epoll_wait");
            ssize_t size = recv(client, request, sizeof request, 0);
            if (size <= 0)
                break;
            /* [0, 0, "acquire" or "release", ...]; the name is a text of 64 bytes. */
            char *name = memmem(request, size, "\xd9\x40", 2);
            if (size < 5 || !name || name + 2 + NAME > request + size)
                return 3;
            if (works)
                carry_out(request[4] == 'a', name + 2, argv[2], keeps);
            need(send(client, answer, sizeof answer - 1, MSG_NOSIGNAL) > 0, "send");
        }
        close(client);
    }
}
