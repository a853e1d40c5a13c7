# Included while llama.cpp configures (CMAKE_PROJECT_llama_cpp_INCLUDE): leaves out its command-line tools, which halves
# the compile time. The Python package needs the library alone.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)
