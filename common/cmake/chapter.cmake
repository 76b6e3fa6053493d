# What a chapter's CMakeLists.txt includes, built alone or from the top: compiler
# settings, the common libraries, and chapter(), which makes its programs.
include_guard(GLOBAL)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, Debug …" FORCE)
endif()
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  add_compile_definitions(_GNU_SOURCE)
endif()

# "address;undefined" or "thread"; every target is then built with it.
set(SANITIZE "" CACHE STRING "sanitizers to build with, separated by ;")
foreach(sanitizer IN LISTS SANITIZE)
  add_compile_options(-fsanitize=${sanitizer} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${sanitizer})
  if(sanitizer STREQUAL "undefined")
    # Its vptr check reads memory through a pipe, and errs where descriptors have run out.
    add_compile_options(-fno-sanitize=vptr)
  endif()
  string(TOUPPER ${sanitizer} upper)
  add_compile_definitions(SANITIZED_${upper})
endforeach()

option(WERROR "warnings are errors" OFF)
add_library(warnings INTERFACE)
target_compile_options(warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion
                                          $<$<BOOL:${WERROR}>:-Werror>)

set_property(GLOBAL PROPERTY TARGET_MESSAGES OFF) # no "Built target" lines

enable_testing()
include(${CMAKE_CURRENT_LIST_DIR}/dependencies.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/readiness.cmake)

# add_doctest(TARGET PREFIX): each test case of the program is a test of CTest's,
# named "PREFIX: its sentence". One that passed but had to skip something ends with
# the code that CTest is told to take for that (doctest_main.cpp).
function(add_doctest target prefix)
  if(CMAKE_CROSSCOMPILING)
    add_test(NAME "${prefix}" COMMAND ${target}) # it cannot be asked for its cases here
    return()
  endif()
  doctest_discover_tests(${target} TEST_PREFIX "${prefix}: "
    PROPERTIES LABELS ${prefix} TIMEOUT 300 ENVIRONMENT SKIP_CODE=77 SKIP_RETURN_CODE 77)
endfunction()

# chapter_program(NAME SOURCE...): a program NAME in the chapter's build folder. It is
# linked under its target's name, and NAME is a symbolic link to it: a file called
# "test" would clash with CTest's own target of that name under Ninja.
function(chapter_program name)
  set(target ${chapter}-${name})
  add_executable(${target} ${ARGN})
  target_link_libraries(${target} PRIVATE warnings)
  add_custom_command(TARGET ${target} POST_BUILD VERBATIM
    COMMAND ${CMAKE_COMMAND} -E create_symlink ${target} ${CMAKE_CURRENT_BINARY_DIR}/${name})
endfunction()

# chapter_parts(TARGET): a library of the chapter's PARTS, over the poller of this system.
macro(chapter_parts target)
  add_library(${target} STATIC ${ARG_PARTS})
  target_link_libraries(${target} PUBLIC socket PRIVATE warnings)
  if(poller STREQUAL "kqueue")
    target_link_libraries(${target} PRIVATE kqueue)
  endif()
endmacro()

# chapter([PARTS SOURCE...] [TESTS SOURCE...] [HOOKS NAME]): the server, its test and its
# experiment, from the chapter's own folder. PARTS (06 to 08) is what the server is made of
# beside its main; the others link it too, and TESTS are further sources of the test. HOOKS:
# the test links parts of its own, which were compiled with that definition. What tests of
# several chapters share is compiled into each, and finds there the chapter's own headers.
function(chapter)
  cmake_parse_arguments(ARG "" "HOOKS" "PARTS;TESTS" ${ARGN})
  get_filename_component(chapter ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  string(REGEX REPLACE "^0*([0-9]+).*" "\\1" number ${chapter})
  file(REMOVE ${CMAKE_CURRENT_BINARY_DIR}/skipped)

  chapter_program(server server.cpp)
  target_link_libraries(${chapter}-server PRIVATE socket)

  foreach(name test break)
    chapter_program(${name} ${name}.cpp)
    target_link_libraries(${chapter}-${name} PRIVATE testing)
    target_compile_definitions(${chapter}-${name} PRIVATE
      SERVER="${CMAKE_CURRENT_BINARY_DIR}/server")
    add_dependencies(${chapter}-${name} ${chapter}-server)
  endforeach()
  target_link_libraries(${chapter}-test PRIVATE doctest_main)
  target_sources(${chapter}-test PRIVATE ../common/testing/chapter_test.cpp)
  target_include_directories(${chapter}-test PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_compile_definitions(${chapter}-test PRIVATE CHAPTER=${number})

  if(ARG_PARTS)
    chapter_parts(${chapter}-parts)
    target_link_libraries(${chapter}-server PRIVATE ${chapter}-parts)
    target_link_libraries(${chapter}-break PRIVATE ${chapter}-parts)
    target_sources(${chapter}-test PRIVATE ${ARG_TESTS})
    if(ARG_HOOKS)
      chapter_parts(${chapter}-hooked)
      target_compile_definitions(${chapter}-hooked PUBLIC ${ARG_HOOKS})
      target_link_libraries(${chapter}-test PRIVATE ${chapter}-hooked)
    else()
      target_link_libraries(${chapter}-test PRIVATE ${chapter}-parts)
    endif()
  endif()
  add_doctest(${chapter}-test ${chapter})
endfunction()

# skip_chapter(REASON): it cannot be built here. Configuring says why, CTest shows the
# chapter as skipped, and ./tour finds the reason in the file `skipped`.
function(skip_chapter reason)
  get_filename_component(chapter ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  message(STATUS "${chapter} is skipped: ${reason}")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/skipped "${reason}\n")
  add_test(NAME "${chapter}: skipped" COMMAND sh -c "cat skipped; exit 77")
  set_tests_properties("${chapter}: skipped" PROPERTIES LABELS ${chapter} SKIP_RETURN_CODE 77)
endfunction()

add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/.. common)
