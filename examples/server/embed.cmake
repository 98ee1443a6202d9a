# Writes OUTPUT, a C++ source in which NAME is the text of the file INPUT: cmake -DINPUT= -DOUTPUT= -DNAME= -P embed.cmake
file(READ ${INPUT} text HEX)
string(REGEX REPLACE "(..)" "'\\\\x\\1'," bytes "${text}")
string(REGEX REPLACE "('[^']*',('[^']*',)?('[^']*',)?('[^']*',)?('[^']*',)?('[^']*',)?('[^']*',)?('[^']*',)?)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUTPUT} "extern const char ${NAME}[];\nextern const unsigned long ${NAME}_size;\nconst char ${NAME}[] = {\n${bytes}'\\0'};\nconst unsigned long ${NAME}_size = sizeof ${NAME} - 1;\n")
