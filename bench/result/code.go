package result

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// CodeOf is a hash of what packages and their tests run: their own code and tests, the
// code of this repository below them, and the versions of the modules below that. What
// was shown of a hash holds while it is the same; tests of what is below change
// nothing of it.
func CodeOf(ctx context.Context, packages ...string) (string, error) {
	const format = `{{with .Module}}{{if not .Main}}{{.Path}}@{{.Version}}{{else}}{{range $.GoFiles}}{{$.Dir}}/{{.}}
{{end}}{{end}}{{end}}`
	below, err := Output(ctx, "go", append([]string{"list", "-deps", "-test", "-f", format}, packages...)...)
	if err != nil {
		return "", err
	}
	lines := strings.Fields(below)
	slices.Sort(lines)
	sum := sha256.New()
	for _, line := range slices.Compact(lines) {
		if strings.Contains(line, "//") {
			continue // the main function that go test makes, which is in its cache by an absolute path
		}
		if !filepath.IsAbs(line) { // a module
			_, _ = fmt.Fprintln(sum, line) // a hash takes all
			continue
		}
		content, err := os.ReadFile(line)
		if err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(sum, "%s %d\n", filepath.Base(line), len(content))
		_, _ = sum.Write(content)
	}
	return hex.EncodeToString(sum.Sum(nil)[:6]), nil
}

// Output is what a command writes; its errors go to the standard one.
func Output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	content, err := io.ReadAll(out)
	return string(content), errors.Join(err, cmd.Wait())
}
