// Package audit is an append-only file of what an auditor asks about: which keys
// were released to whom, which enclave releases ran where, which attestation
// documents were refused. It holds names and identifiers, never content.
//
// Each record is a line of JSON that carries the SHA-256 of the line before it,
// so that none can be changed, dropped or put in between without all later ones
// changing, too:
//
//	log, err := audit.Open("audit.log")
//	err = log.Append(time.Now(), audit.Event{Name: audit.KeyReleased, About: map[string]string{"request": "0f…"}})
//	summary, err := audit.Verify(file)
//
// A chain says nothing of who has written it, or of records that are missing at
// its end: who can write the file can write another one from its start on. So
// its [Head] is told wherever a copy of the file goes, and a head that was noted
// earlier must be found in the chain later ([Verify]).
package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Names of events. What each is about is said by keys in [Event.About].
const (
	KeyReleased       = "key_released"        // KMS gave a data key to an enclave: request, tenant, instance
	KeyRefused        = "key_refused"         // KMS did not: the same, and error
	FleetSeedMade     = "fleet_seed_made"     // KMS made a fleet's seed for an enclave, the epoch's first: instance, fleet, region, epoch, key
	FleetSeedReleased = "fleet_seed_released" // KMS released one, which another enclave has had made: the same
	FleetSeedRefused  = "fleet_seed_refused"  // an enclave got none: the same, without key, and error
	FleetKeyWiped     = "fleet_key_wiped"     // an enclave has dropped an epoch's key, which is over: the same

	EngineHostTrusted = "engine_host_trusted" // an enclave sends prompts to an engine on this host: instance, image, key, refusals
	EngineHostRefused = "engine_host_refused" // an enclave does not, as its host does not vouch for it: instance, key, refusals, error

	Washed = "instance_washed" // an instance has been washed in full: instance, wash, trigger, passed, and of one that failed reason

	EnclaveRelease  = "enclave_release"  // an instance's enclave runs another release than before: instance, release, version, pcr0
	DocumentRefused = "document_refused" // an instance's attestation does not verify: instance, error
	Manifest        = "release_manifest" // another manifest of releases is followed: version, min_version
	RecordsLost     = "records_lost"     // an enclave had forgotten records before they were asked for: instance, count
	TornRecord      = "torn_record"      // the file ended in half a record, after a crash; it was cut off
)

// Events are the names of all events.
func Events() []string {
	return []string{
		KeyReleased, KeyRefused, FleetSeedMade, FleetSeedReleased, FleetSeedRefused, FleetKeyWiped,
		EngineHostTrusted, EngineHostRefused, Washed, EnclaveRelease, DocumentRefused, Manifest, RecordsLost, TornRecord,
	}
}

// Event is what is to be recorded.
type Event struct {
	Name  string
	About map[string]string
}

// Record is a line of the file.
type Record struct {
	Sequence uint64            `json:"seq"` // from 1 on, without gaps
	Time     time.Time         `json:"time"`
	Event    string            `json:"event"`
	About    map[string]string `json:"about,omitempty"`
	Previous string            `json:"prev"` // SHA-256 of the line before, without its newline, in hex; of the first: zeros
}

// Head is how far a chain goes.
type Head struct {
	Sequence uint64
	Hash     string // of the record of that sequence number
}

// String gives SEQUENCE:HASH.
func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Sequence, h.Hash) }

// ParseHead reads what String gives.
func ParseHead(text string) (h Head, err error) {
	if _, err := fmt.Sscanf(text, "%d:%s", &h.Sequence, &h.Hash); err != nil || len(h.Hash) != 2*sha256.Size || h.String() != text {
		return Head{}, fmt.Errorf("head %q: want SEQUENCE:HASH", text)
	}
	return h, nil
}

// start is the head of a chain without records.
func start() Head { return Head{Hash: strings.Repeat("0", 2*sha256.Size)} }

// Limits of a record, so that nobody who reads one does unbounded work.
const (
	maxLineBytes  = 16 << 10
	maxValueBytes = 1 << 10
	maxAbout      = 16
)

// Log is a file that is being written. It is safe for concurrent use within one
// process; two processes must not write one file.
type Log struct {
	path string

	mu     sync.Mutex
	file   *os.File // guarded by mu; nil after a failure, until it is opened again
	head   Head     // guarded by mu
	closed bool     // guarded by mu
}

// Open opens a file, or makes it, readable by its owner alone. A file whose chain
// is broken is an error: nothing more is written to it.
func Open(path string) (*Log, error) {
	l := &Log{path: path}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.open(time.Now()); err != nil {
		return nil, err
	}
	return l, nil
}

// open opens the file and finds the chain's head. Half a record at the end is
// what a crash leaves, or a disk that is full. The caller holds mu.
func (l *Log) open(now time.Time) (err error) {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	l.file = file
	if err := l.resume(now); err != nil {
		return l.fail(fmt.Errorf("audit log %s: %w", l.path, err))
	}
	return nil
}

// fail gives the file up until the next attempt. The caller holds mu.
func (l *Log) fail(err error) error {
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
		l.file = nil
	}
	return err
}

func (l *Log) resume(now time.Time) error {
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	head, whole, err := headOfFile(l.file, info.Size())
	if err != nil {
		return err
	}
	l.head = head
	torn := info.Size() - whole
	if torn == 0 {
		return nil
	}
	if err := l.file.Truncate(whole); err != nil {
		return err
	}
	return l.write(now, Event{Name: TornRecord, About: map[string]string{"bytes": fmt.Sprint(torn)}})
}

// headOfFile verifies the whole lines of a file of that size, from its start, and gives
// the head of their chain and how many bytes they are. It keeps no more than a line of it
// in memory: a log grows for years.
func headOfFile(file io.ReaderAt, size int64) (head Head, whole int64, err error) {
	if whole, err = wholeLines(file, size); err != nil {
		return Head{}, 0, err
	}
	chain := NewReader(io.NewSectionReader(file, 0, whole), start())
	for {
		switch _, _, err := chain.Next(); {
		case errors.Is(err, io.EOF):
			return chain.Head(), whole, nil
		case err != nil:
			return Head{}, 0, err
		}
	}
}

// wholeLines is how many bytes of a file are whole lines: up to its last newline.
func wholeLines(file io.ReaderAt, size int64) (int64, error) {
	piece := make([]byte, maxLineBytes)
	for end := size; end > 0; {
		from := max(0, end-int64(len(piece)))
		n, err := file.ReadAt(piece[:end-from], from)
		if int64(n) < end-from {
			return 0, err
		}
		if at := bytes.LastIndexByte(piece[:n], '\n'); at >= 0 {
			return from + int64(at) + 1, nil
		}
		end = from
	}
	return 0, nil
}

// Append records events. When it returns without an error they are on the disk;
// with one, some of them may be, and the next call opens the file again.
func (l *Log) Append(now time.Time, events ...Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("audit log: closed")
	}
	if l.file == nil {
		if err := l.open(now); err != nil {
			return err
		}
	}
	if err := l.write(now, events...); err != nil {
		return l.fail(fmt.Errorf("audit log %s: %w", l.path, err))
	}
	return nil
}

// write appends to the file that is open. The caller holds mu.
func (l *Log) write(now time.Time, events ...Event) error {
	head := l.head
	var lines []byte
	for _, e := range events {
		line, err := json.Marshal(Record{Sequence: head.Sequence + 1, Time: now.UTC(), Event: e.Name, About: clipped(e.About), Previous: head.Hash})
		if err != nil {
			return err
		}
		head = Head{Sequence: head.Sequence + 1, Hash: hashOf(line)}
		lines = append(append(lines, line...), '\n')
	}
	if _, err := l.file.Write(lines); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.head = head
	return nil
}

// clipped keeps a record within its limits, whatever an error's text is.
func clipped(about map[string]string) map[string]string {
	out := make(map[string]string, len(about))
	for name, value := range about {
		out[name] = strings.ToValidUTF8(value[:min(len(value), maxValueBytes)], "")
	}
	return out
}

// Head is how far the log goes.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Close closes the file; nothing more is recorded.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return l.fail(nil)
}

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// Summary is what a chain holds.
type Summary struct {
	Head   Head
	Events map[string]int // by name
}

// Verify reads a whole chain, and says which record breaks it. Each head that was
// noted earlier must be in it.
func Verify(r io.Reader, noted ...Head) (Summary, error) {
	return Walk(r, func(Record) {}, noted...)
}

// Walk is Verify, and gives each record as soon as it is known to be the next of
// the chain.
func Walk(r io.Reader, visit func(Record), noted ...Head) (Summary, error) {
	s := Summary{Head: start(), Events: map[string]int{}}
	want := map[uint64]string{}
	for _, h := range noted {
		if other, ok := want[h.Sequence]; ok && other != h.Hash {
			return s, fmt.Errorf("heads of record %d differ: there were two chains", h.Sequence)
		}
		want[h.Sequence] = h.Hash
	}
	chain := NewReader(r, s.Head)
	for {
		record, _, err := chain.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s, err
		}
		s.Head = chain.Head()
		s.Events[record.Event]++
		if hash, ok := want[record.Sequence]; ok && hash != s.Head.Hash {
			return s, fmt.Errorf("record %d has hash %s, and %s was noted: this is another chain", record.Sequence, s.Head.Hash, hash)
		}
		visit(record)
	}
	for sequence := range want {
		if sequence > s.Head.Sequence {
			return s, fmt.Errorf("the chain ends at record %d, and %d was noted: its end is missing", s.Head.Sequence, sequence)
		}
	}
	return s, nil
}

// Reader reads a chain record by record.
type Reader struct {
	lines *bufio.Reader
	head  Head
}

// NewReader reads what follows a head; of a whole chain that is the zero [Head].
func NewReader(r io.Reader, after Head) *Reader {
	if after == (Head{}) {
		after = start()
	}
	return &Reader{lines: bufio.NewReaderSize(r, maxLineBytes), head: after}
}

// Head is how far it has read.
func (r *Reader) Head() Head { return r.head }

// Next gives a record as soon as it is known to be the next of the chain, and its
// line, without the newline, which is valid until the next call. The error is
// [io.EOF] at the end, and wraps [io.ErrUnexpectedEOF] where half a line is.
func (r *Reader) Next() (Record, []byte, error) {
	line, err := r.lines.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		return Record{}, nil, io.EOF
	case errors.Is(err, io.EOF):
		return Record{}, nil, fmt.Errorf("record %d is not a whole line: %w", r.head.Sequence+1, io.ErrUnexpectedEOF)
	case errors.Is(err, bufio.ErrBufferFull):
		return Record{}, nil, fmt.Errorf("record %d is not a line of at most %d bytes", r.head.Sequence+1, maxLineBytes)
	case err != nil:
		return Record{}, nil, err
	}
	line = line[:len(line)-1]
	record, err := parse(line)
	switch {
	case err != nil:
	case record.Sequence != r.head.Sequence+1:
		err = fmt.Errorf("has number %d", record.Sequence)
	case record.Previous != r.head.Hash:
		err = errors.New("does not follow the record before: that one was changed, or others are missing")
	}
	if err != nil {
		return record, line, fmt.Errorf("record %d: %w", r.head.Sequence+1, err)
	}
	r.head = Head{Sequence: record.Sequence, Hash: hashOf(line)}
	return record, line, nil
}

// HeadOf gives the head of a chain that ends with a line. It is the line's own
// word: where in a chain it is, only the chain says.
func HeadOf(line []byte) (Head, error) {
	record, err := parse(line)
	if err != nil {
		return Head{}, fmt.Errorf("audit record: %w", err)
	}
	return Head{Sequence: record.Sequence, Hash: hashOf(line)}, nil
}

func parse(line []byte) (record Record, err error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&record); err != nil {
		return record, errors.New(err.Error()) // the decoder's io.EOF is not the chain's
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return record, errors.New("data after it")
	}
	if record.Event == "" || len(record.About) > maxAbout {
		return record, errors.New("has no event, or says too much")
	}
	return record, nil
}
