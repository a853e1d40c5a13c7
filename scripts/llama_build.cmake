# Included while llama.cpp configures (CMAKE_PROJECT_llama_cpp_INCLUDE): leaves out its command-line tools, which halves
# the compile time. The Python package needs the library alone.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)

# Intel's AMX kernels end the process with a segmentation fault on quantised weights (seen with 0.3.36 on Sapphire Rapids).
add_compile_options(-U__AMX_INT8__)
