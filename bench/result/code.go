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

// CodeOf is a hash of packages' code, tests and all, and of what is below them in this
// repository and beside it in go.mod. What was shown of a hash holds while it is the
// same.
func CodeOf(ctx context.Context, packages ...string) (string, error) {
	const format = `{{if and .Module .Module.Main}}{{$dir := .Dir}}{{range .GoFiles}}{{$dir}}/{{.}}
{{end}}{{range .TestGoFiles}}{{$dir}}/{{.}}
{{end}}{{range .XTestGoFiles}}{{$dir}}/{{.}}
{{end}}{{end}}`
	below, err := Output(ctx, "go", append([]string{"list", "-deps", "-f", format}, packages...)...)
	if err != nil {
		return "", err
	}
	files := append(strings.Fields(below), "go.sum")
	slices.Sort(files)
	sum := sha256.New()
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(sum, "%s %d\n", filepath.Base(file), len(content)) // a hash takes all
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
