# SPDX-License-Identifier: Apache-2.0
# Writes build_info.hpp, which changes only when the commit does.
# cmake -D source_dir=DIR -D output=FILE -D version=... -D compiler=... -D build_type=... -P THIS
set(commit unknown)
find_package(Git QUIET)
# Not the commit of a repository that merely surrounds these sources.
if(Git_FOUND AND EXISTS ${source_dir}/.git)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${source_dir} describe --always --dirty --abbrev=12
                          --exclude=* OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE
                  ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(commit ${described})
  endif()
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/build_info.hpp.in ${output} @ONLY)
