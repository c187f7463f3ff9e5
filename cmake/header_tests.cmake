# SPDX-License-Identifier: Apache-2.0
# Every header compiles alone and twice in one file. Not part of `all`, for it takes a minute:
#   cmake --build BUILD --target winnow_header_tests        .hpp, C++ compiler
#   cmake --build BUILD --target winnow_header_tests_cuda   .hpp and .cuh, nvcc
#
# A header of the device side that a host compiler can read says `Needs the CUDA toolkit.`; a
# host-only build passes it over.

# winnow_header_test(TARGET EXTENSION HEADER...): an object library with a source file per header.
function(winnow_header_test target extension)
  set(sources "")
  foreach(header IN LISTS ARGN)
    set(source ${PROJECT_BINARY_DIR}/header_tests/${header}.${extension})
    # The content only changes with the name, so this rewrites nothing that is up to date.
    file(GENERATE OUTPUT ${source} CONTENT "#include \"${header}\"\n#include \"${header}\"\n")
    list(APPEND sources ${source})
  endforeach()
  add_library(${target} OBJECT EXCLUDE_FROM_ALL ${sources})
  target_link_libraries(${target} PRIVATE winnow_headers winnow_warnings)
endfunction()

set(include_dir ${PROJECT_SOURCE_DIR}/include)
file(GLOB_RECURSE host_headers CONFIGURE_DEPENDS RELATIVE ${include_dir} ${include_dir}/*.hpp)
if(NOT WINNOW_CUDA)
  foreach(header IN LISTS host_headers)
    file(STRINGS ${include_dir}/${header} needs_cuda REGEX "^/// Needs the CUDA toolkit\\.$")
    if(needs_cuda)
      list(REMOVE_ITEM host_headers ${header})
    endif()
  endforeach()
endif()
winnow_header_test(winnow_header_tests cpp ${host_headers})
if(WINNOW_CUDA)
  file(GLOB_RECURSE cuda_headers CONFIGURE_DEPENDS RELATIVE ${include_dir} ${include_dir}/*.cuh)
  winnow_header_test(winnow_header_tests_cuda cu ${host_headers} ${cuda_headers})
endif()
