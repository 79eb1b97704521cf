package audit_test

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/audit"
)

func TestAudit(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/audit")
}

func at(second int) time.Time { return time.Date(2026, 11, 26, 12, 0, second, 0, time.UTC) }

func event(i int) audit.Event {
	return audit.Event{Name: audit.KeyReleased, About: map[string]string{"request": strings.Repeat("0f", i%16), "tenant": "acme"}}
}

var _ = Describe("A log", func() {
	var path string
	open := func() *audit.Log {
		GinkgoHelper()
		log, err := audit.Open(path)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(log.Close)
		return log
	}
	content := func() []byte {
		GinkgoHelper()
		b, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		return b
	}
	// written is a log of n records, closed.
	written := func(n int) {
		GinkgoHelper()
		log := open()
		for i := range n {
			Expect(log.Append(at(i), event(i))).To(Succeed())
		}
		Expect(log.Close()).To(Succeed())
	}
	BeforeEach(func() { path = filepath.Join(GinkgoT().TempDir(), "audit.log") })

	It("is a chain that anybody can verify, and goes on when it is opened again", func() {
		log := open()
		Expect(log.Append(at(1), event(1), event(2))).To(Succeed())
		noted := log.Head()
		Expect(log.Close()).To(Succeed())
		log = open()
		Expect(log.Head()).To(Equal(noted))
		Expect(log.Append(at(3), audit.Event{Name: audit.Manifest})).To(Succeed())
		var records []audit.Record
		summary, err := audit.Walk(bytes.NewReader(content()), func(r audit.Record) { records = append(records, r) }, noted)
		Expect(err).NotTo(HaveOccurred())
		Expect(summary.Head).To(Equal(log.Head()))
		Expect(summary.Events).To(Equal(map[string]int{audit.KeyReleased: 2, audit.Manifest: 1}))
		Expect(records[1]).To(And(HaveField("Sequence", uint64(2)), HaveField("Time", at(1)), HaveField("About", event(2).About)))
		info, err := os.Stat(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(BeEquivalentTo(0o600))
	})

	It("shows every change of a byte, every record that is missing, swapped, or put in between", func() {
		written(5)
		whole := content()
		summary, err := audit.Verify(bytes.NewReader(whole))
		Expect(err).NotTo(HaveOccurred())
		for i := range whole {
			changed := bytes.Clone(whole)
			changed[i] ^= 1
			_, err := audit.Verify(bytes.NewReader(changed), summary.Head)
			Expect(err).To(HaveOccurred(), "byte %d", i)
		}
		lines := bytes.SplitAfter(whole, []byte("\n"))[:5]
		for i := range lines {
			for what, changed := range map[string][][]byte{
				"missing": slices.Delete(slices.Clone(lines), i, i+1), "twice": slices.Insert(slices.Clone(lines), i, lines[i]),
				"in another's place": slices.Insert(slices.Delete(slices.Clone(lines), i, i+1), (i+1)%5, lines[i]),
			} {
				_, err := audit.Verify(bytes.NewReader(bytes.Join(changed, nil)), summary.Head)
				Expect(err).To(HaveOccurred(), "record %d %s", i+1, what)
			}
		}
	})

	It("shows an end that was cut off, and another chain, to who has noted a head", func() {
		written(3)
		whole := content()
		summary, err := audit.Verify(bytes.NewReader(whole))
		Expect(err).NotTo(HaveOccurred())
		shorter := whole[:bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1]
		_, err = audit.Verify(bytes.NewReader(shorter))
		Expect(err).NotTo(HaveOccurred(), "it is a chain")
		_, err = audit.Verify(bytes.NewReader(shorter), summary.Head)
		Expect(err).To(MatchError(ContainSubstring("its end is missing")))
		other := summary.Head
		other.Hash = strings.Repeat("ab", 32)
		_, err = audit.Verify(bytes.NewReader(whole), other)
		Expect(err).To(MatchError(ContainSubstring("another chain")))
		_, err = audit.Verify(bytes.NewReader(whole), summary.Head, other)
		Expect(err).To(MatchError(ContainSubstring("two chains")))
	})

	It("is not written to when its chain is broken", func() {
		written(3)
		changed := bytes.Replace(content(), []byte("acme"), []byte("acmf"), 1)
		Expect(os.WriteFile(path, changed, 0o600)).To(Succeed())
		_, err := audit.Open(path)
		Expect(err).To(MatchError(ContainSubstring("record 2: does not follow")))
		Expect(content()).To(Equal(changed))
	})

	It("loses half a record to a crash, and says so", func() {
		written(2)
		whole := content()
		Expect(os.WriteFile(path, append(whole, []byte(`{"seq":3,"ti`)...), 0o600)).To(Succeed())
		open()
		summary, err := audit.Verify(bytes.NewReader(content()))
		Expect(err).NotTo(HaveOccurred())
		Expect(summary.Events).To(HaveKeyWithValue(audit.TornRecord, 1))
		Expect(summary.Head.Sequence).To(BeEquivalentTo(3))
	})

	It("loses more than a record's length without a newline, too, as a disk may leave it", func() {
		written(2)
		whole := content()
		for _, torn := range []int{1, 16<<10 - 1, 16 << 10, 16<<10 + 1, 100 << 10} {
			Expect(os.WriteFile(path, append(bytes.Clone(whole), make([]byte, torn)...), 0o600)).To(Succeed())
			Expect(open().Close()).To(Succeed())
			Expect(content()).To(HavePrefix(string(whole)))
			Expect(content()[len(whole):]).To(ContainSubstring(`"bytes":"%d"`, torn))
		}
	})

	It("is opened with a few of its lines in memory, however long it is", func() {
		log := open()
		long := audit.Event{Name: audit.DocumentRefused, About: map[string]string{"error": strings.Repeat("x", 1000)}}
		for range 16 {
			Expect(log.Append(at(0), slices.Repeat([]audit.Event{long}, 1000)...)).To(Succeed())
		}
		file, err := os.Open(path)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(file.Close)
		info, err := file.Stat()
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Size()).To(BeNumerically(">", 16<<20))
		watched := &watchedFile{ReaderAt: file}
		before := liveHeap()
		head, whole, err := audit.HeadOfFile(watched, info.Size())
		Expect(err).NotTo(HaveOccurred())
		Expect(head).To(Equal(log.Head()))
		Expect(whole).To(Equal(info.Size()))
		Expect(watched.read).To(BeNumerically(">=", info.Size()), "all of it is verified")
		Expect(watched.largest).To(BeNumerically("<=", 16<<10))
		Expect(int64(watched.heap)-int64(before)).To(BeNumerically("<", 2<<20), "live at any time")
	})

	It("keeps records small, whatever they are about", func() {
		log := open()
		Expect(log.Append(at(1), audit.Event{Name: audit.DocumentRefused, About: map[string]string{"error": strings.Repeat("é", 1<<20)}})).To(Succeed())
		Expect(len(content())).To(BeNumerically("<", 2<<10))
		_, err := audit.Verify(bytes.NewReader(content()))
		Expect(err).NotTo(HaveOccurred())
	})

	It("goes on after a failure, when the file can be written again", func() {
		log := open()
		Expect(log.Append(at(1), event(1))).To(Succeed())
		audit.BreakFile(log)
		Expect(log.Append(at(2), event(2))).NotTo(Succeed())
		Expect(log.Head().Sequence).To(BeEquivalentTo(1))
		file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		Expect(err).NotTo(HaveOccurred())
		_, err = file.WriteString(`{"half`) // as a disk that is full leaves it
		Expect(errors.Join(err, file.Close())).To(Succeed())
		Expect(log.Append(at(3), event(3))).To(Succeed())
		summary, err := audit.Verify(bytes.NewReader(content()), log.Head())
		Expect(err).NotTo(HaveOccurred())
		Expect(summary.Events).To(Equal(map[string]int{audit.KeyReleased: 2, audit.TornRecord: 1}))
	})

	It("takes nothing after it was closed", func() {
		log := open()
		Expect(log.Close()).To(Succeed())
		Expect(log.Append(at(1), event(1))).NotTo(Succeed())
		Expect(log.Close()).To(Succeed())
	})

	It("is one chain when many write", func() {
		log := open()
		var writers sync.WaitGroup
		for i := range 20 {
			writers.Go(func() {
				defer GinkgoRecover()
				Expect(log.Append(at(i), event(i))).To(Succeed())
			})
		}
		writers.Wait()
		summary, err := audit.Verify(bytes.NewReader(content()), log.Head())
		Expect(err).NotTo(HaveOccurred())
		Expect(summary.Head.Sequence).To(BeEquivalentTo(20))
	})
})

// watchedFile is a file that is read, and how much was live on the heap meanwhile.
type watchedFile struct {
	io.ReaderAt
	read    int64
	largest int    // read at once
	heap    uint64 // the most that was live, seen after each MiB
	seen    int64
}

func (f *watchedFile) ReadAt(p []byte, off int64) (int, error) {
	f.largest = max(f.largest, len(p))
	n, err := f.ReaderAt.ReadAt(p, off)
	f.read += int64(n)
	if f.read-f.seen >= 1<<20 {
		f.seen = f.read
		f.heap = max(f.heap, liveHeap())
	}
	return n, err
}

func liveHeap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

var _ = Describe("Events", func() {
	It("are all that there are names of", func() {
		file, err := parser.ParseFile(token.NewFileSet(), "audit.go", nil, 0)
		Expect(err).NotTo(HaveOccurred())
		var names []string
		for _, decl := range file.Decls {
			block, ok := decl.(*ast.GenDecl)
			if !ok || block.Tok != token.CONST || block.Specs[0].(*ast.ValueSpec).Names[0].Name != "KeyReleased" {
				continue
			}
			for _, spec := range block.Specs {
				name, err := strconv.Unquote(spec.(*ast.ValueSpec).Values[0].(*ast.BasicLit).Value)
				Expect(err).NotTo(HaveOccurred())
				names = append(names, name)
			}
		}
		Expect(len(names)).To(BeNumerically(">", 10))
		Expect(audit.Events()).To(ConsistOf(names))
	})
})

var _ = Describe("A head", func() {
	It("is read as it was written", func() {
		h := audit.Head{Sequence: 7, Hash: strings.Repeat("ab", 32)}
		Expect(audit.ParseHead(h.String())).To(Equal(h))
		for _, bad := range []string{"", "7", "7:ab", "x:" + h.Hash, " " + h.String(), h.String() + " "} {
			_, err := audit.ParseHead(bad)
			Expect(err).To(HaveOccurred(), "%q", bad)
		}
	})
})

// FuzzVerify looks for a file that makes the verifier panic, or passes for a
// chain without being one.
func FuzzVerify(f *testing.F) {
	path := filepath.Join(f.TempDir(), "audit.log")
	log, err := audit.Open(path)
	if err != nil {
		f.Fatal(err)
	}
	if err := log.Append(at(1), event(1), event(2)); err != nil {
		f.Fatal(err)
	}
	if err := log.Close(); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		summary, err := audit.Verify(bytes.NewReader(file))
		if err == nil && int(summary.Head.Sequence) != bytes.Count(file, []byte("\n")) {
			t.Fatalf("%d records in %d lines", summary.Head.Sequence, bytes.Count(file, []byte("\n")))
		}
	})
}
