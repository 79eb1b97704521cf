package extproc

const DoubtedFor = doubtedFor
