# SPDX-License-Identifier: Apache-2.0
# Decides whether winnow builds its device side, and for which architectures.
#
# WINNOW_CUDA defaults to ON where a CUDA compiler is found. Without one the package is host-only:
# reference, host builders, selection, search.
include(CheckLanguage)

# The toolkit's usual place is often not on PATH.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
  set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
endif()
if(NOT DEFINED WINNOW_CUDA)
  check_language(CUDA)
endif()
if(CMAKE_CUDA_COMPILER)
  option(WINNOW_CUDA "Build the CUDA side" ON)
else()
  option(WINNOW_CUDA "Build the CUDA side" OFF)
endif()

if(WINNOW_CUDA)
  # One architecture by default keeps builds short; packagers name theirs.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90 CACHE STRING "CUDA architectures")
  endif()
  enable_language(CUDA)
  # One runtime for the library and for whoever links it.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  find_package(CUDAToolkit 12 REQUIRED)
endif()
