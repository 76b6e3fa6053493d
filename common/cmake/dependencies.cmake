# fmt and doctest: the system's if they are installed, else fetched at a pinned
# release. Threads comes with the system.
include(FetchContent)
if(POLICY CMP0135)
  cmake_policy(SET CMP0135 NEW) # fetched files get the time of their extraction
endif()

find_package(Threads REQUIRED)

# When cross-compiling: a folder that holds fmt/ and doctest/, the headers alone, in
# place of a network. /usr/include would bring another system's headers along.
set(HEADERS "" CACHE PATH "folder with the headers of fmt and doctest, for cross-compiling")
if(HEADERS)
  get_filename_component(headers ${HEADERS} ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
  foreach(library fmt doctest)
    add_library(${library}::${library} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${library}::${library} SYSTEM INTERFACE ${headers})
  endforeach()
  target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)
  return()
endif()

find_package(fmt 9 QUIET)
if(NOT fmt_FOUND)
  message(STATUS "fmt is not installed: fetching 12.1.0")
  FetchContent_Declare(fmt
    URL https://github.com/fmtlib/fmt/archive/refs/tags/12.1.0.tar.gz
    URL_HASH SHA256=ea7de4299689e12b6dddd392f9896f08fb0777ac7168897a244a6d6085043fea)
  FetchContent_MakeAvailable(fmt)
endif()

find_package(doctest 2.4.9 QUIET)
if(doctest_FOUND)
  include(doctest OPTIONAL) # doctest_discover_tests, where the package brings it
else()
  message(STATUS "doctest is not installed: fetching 2.4.11")
  FetchContent_Declare(doctest
    URL https://github.com/doctest/doctest/archive/refs/tags/v2.4.11.tar.gz
    URL_HASH SHA256=632ed2c05a7f53fa961381497bf8069093f0d6628c5f26286161fbd32a560186)
  FetchContent_MakeAvailable(doctest)
  include(${doctest_SOURCE_DIR}/scripts/cmake/doctest.cmake)
endif()
