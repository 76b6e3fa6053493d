# How this system tells who is ready: HAVE_EPOLL, and a target `kqueue` to link if there
# is kqueue, of the system itself or, on Linux, by libkqueue.
include(CheckIncludeFileCXX)
include(CheckCXXSymbolExists)

check_include_file_cxx(sys/epoll.h HAVE_EPOLL)
check_cxx_symbol_exists(kqueue "sys/types.h;sys/event.h" HAVE_NATIVE_KQUEUE)

set(NO_KQUEUE "no kqueue: it is of macOS and the BSDs, and libkqueue is not installed (pkg-config libkqueue)")
if(HAVE_NATIVE_KQUEUE)
  add_library(kqueue INTERFACE)
elseif(NOT CMAKE_CROSSCOMPILING)
  find_package(PkgConfig QUIET)
  if(PKG_CONFIG_FOUND)
    pkg_check_modules(LIBKQUEUE QUIET IMPORTED_TARGET libkqueue)
  endif()
  if(LIBKQUEUE_FOUND)
    add_library(kqueue INTERFACE)
    target_link_libraries(kqueue INTERFACE PkgConfig::LIBKQUEUE)
  endif()
endif()
