# What the libraries are called, what they show, and what of them tests may use.
#
# Files are libmamba-cpp and not libmamba, which is the library of another program's, conda's package manager. Before 1.0
# every minor version may break what was compiled against another.
set(mamba_soversion ${PROJECT_VERSION_MAJOR})
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(mamba_soversion 0.${PROJECT_VERSION_MINOR})
endif()

# A static library may be linked into a shared one of its user's: all is position independent. So that a call of a function
# that is shown stays as fast within the library as one of another, none can be put in its place.
function(mamba_library target output_name)
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME ${output_name}
    VERSION ${PROJECT_VERSION}
    SOVERSION ${mamba_soversion}
    DEFINE_SYMBOL ""
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    CUDA_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-semantic-interposition>)
  # Nor is shown what comes out of static libraries, such as the CUDA runtime.
  target_link_options(${target} PRIVATE LINKER:--exclude-libs,ALL)
endfunction()

mamba_library(mamba mamba-cpp)
if(mamba_has_sm_90a)
  set_target_properties(mamba_90a PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden)
endif()
if(mamba_has_data_parallel)
  mamba_library(mamba_data_parallel mamba-cpp-data-parallel)
endif()

# mamba_whole: for tests of what src/ has and the library hides. Of a shared one, the same objects linked statically.
if(BUILD_SHARED_LIBS)
  add_library(mamba_whole STATIC EXCLUDE_FROM_ALL $<TARGET_OBJECTS:mamba>)
  set_target_properties(mamba_whole PROPERTIES LINKER_LANGUAGE CXX)
  target_include_directories(mamba_whole PUBLIC $<TARGET_PROPERTY:mamba,INTERFACE_INCLUDE_DIRECTORIES>)
  target_compile_features(mamba_whole PUBLIC cxx_std_17)
  get_target_property(needed mamba LINK_LIBRARIES)
  target_link_libraries(mamba_whole PRIVATE ${needed})
else()
  add_library(mamba_whole ALIAS mamba)
endif()
