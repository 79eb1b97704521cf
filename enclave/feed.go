package enclave

import "io"

// pieceBytes is the most that is read at once.
const pieceBytes = 8 << 10

// feed reads on a goroutine of its own, so that who takes from it can wait for
// something else, too.
type feed struct {
	from    io.ReadCloser
	pieces  chan piece
	taken   chan struct{} // by whom pieces are taken, when it needs one no longer
	stopped chan struct{}
	done    chan struct{}
}

// piece is what one call of Read gave.
type piece struct {
	bytes []byte
	err   error
}

func startFeed(from io.ReadCloser) *feed {
	f := &feed{from: from, pieces: make(chan piece), taken: make(chan struct{}), stopped: make(chan struct{}), done: make(chan struct{})}
	go f.run()
	return f
}

// run ends with the first error that a read gives.
func (f *feed) run() {
	defer close(f.done)
	buffer := make([]byte, pieceBytes)
	defer clear(buffer)
	for {
		n, err := f.from.Read(buffer)
		select {
		case f.pieces <- piece{buffer[:n], err}:
		case <-f.stopped:
			return
		}
		select {
		case <-f.taken:
		case <-f.stopped:
			return
		}
		if err != nil {
			return
		}
	}
}

// stop closes what was read from, which ends a read, and returns when no piece is
// left in memory.
func (f *feed) stop() {
	close(f.stopped)
	_ = f.from.Close() // nothing more is wanted of it
	<-f.done
}
