// The server of this chapter as bare system calls, with most errors ignored: for comparison.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  const int port = argc > 1 ? std::atoi(argv[1]) : 8080;
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);  // TCP over IPv4

  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);        // in network byte order,
  address.sin_port = htons(static_cast<in_port_t>(port));  // the most significant first
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(listener, SOMAXCONN) != 0) {
    std::perror("cannot listen");
    return 1;
  }
  for (;;) {
    const int connection = ::accept(listener, nullptr, nullptr);
    char buffer[16 * 1024];
    ssize_t n = 0;
    while ((n = ::read(connection, buffer, sizeof(buffer))) > 0) {
      if (::write(connection, buffer, static_cast<std::size_t>(n)) < 0) break;
    }
    ::close(connection);
  }
}
