# Writes OUTPUT, a C++ source in which page_policy is the Content-Security-Policy of the page INPUT: its own script and
# style, known by their hashes, this server, and nothing else. cmake -DINPUT= -DOUTPUT= -P page_policy.cmake
file(READ ${INPUT} page)
set(alphabet "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")

# Sets `result` to 'sha256-...' of the text between <NAME> and </NAME>.
function(hash_of name result)
  string(LENGTH "<${name}>" size)
  string(FIND "${page}" "<${name}>" first)
  string(FIND "${page}" "</${name}>" end)
  if(first EQUAL -1 OR end LESS first)
    message(FATAL_ERROR "${INPUT}: expected <${name}> and </${name}>, got none")
  endif()
  math(EXPR first "${first} + ${size}")
  math(EXPR size "${end} - ${first}")
  string(SUBSTRING "${page}" ${first} ${size} text)
  string(SHA256 hex "${text}")
  # In base64: 32 bytes are ten threes and a two, so a byte of zeros at the end gives the last digit, which is not said.
  set(base64 "")
  foreach(at RANGE 0 60 6)
    string(SUBSTRING "${hex}00" ${at} 6 three)
    foreach(shift 18 12 6 0)
      math(EXPR digit "(0x${three} >> ${shift}) & 63")
      string(SUBSTRING "${alphabet}" ${digit} 1 digit)
      string(APPEND base64 "${digit}")
    endforeach()
  endforeach()
  string(SUBSTRING "${base64}" 0 43 base64)
  set(${result} "'sha256-${base64}='" PARENT_SCOPE)
endfunction()

hash_of(script script)
hash_of(style style)
file(WRITE ${OUTPUT} "extern const char page_policy[];
const char page_policy[] =
    \"default-src 'none'; script-src ${script}; style-src ${style}; img-src data:; connect-src 'self'; \"
    \"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'\";
")
