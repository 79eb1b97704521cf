package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// output is how a command shows what it has found: as a table or as JSON.
type output string

// flag is one of a command's flags, its own or those that its subcommands have, too.
func (o *output) flag(cmd *cobra.Command, of *pflag.FlagSet) {
	of.StringVarP((*string)(o), "output", "o", "table", "table, for people, or json, for programs")
	complete(cmd, "output", "table", "json")
}

func (o output) check() error {
	if o != "table" && o != "json" {
		return fmt.Errorf("--output %q: want table or json", string(o))
	}
	return nil
}

// print writes a result as JSON, or as a table.
func (o output) print(w io.Writer, result any, table func(io.Writer) error) error {
	if o == "json" {
		return printJSON(w, result)
	}
	return table(w)
}

func printJSON(w io.Writer, of any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(of)
}

// progressLine is a line on a terminal that the next one replaces. Elsewhere it shows
// nothing.
type progressLine struct {
	out   io.Writer // nil: no terminal
	shown bool
}

func newProgressLine(out io.Writer) *progressLine {
	if file, ok := out.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return &progressLine{out: out}
		}
	}
	return &progressLine{}
}

func (p *progressLine) show(format string, args ...any) {
	if p.out != nil {
		text := []rune(fmt.Sprintf(format, args...))
		fmt.Fprintf(p.out, "\r\x1b[K%s", string(text[:min(len(text), 100)]))
		p.shown = true
	}
}

// clear takes the line away: what comes next begins where it did.
func (p *progressLine) clear() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}

// complete has the shell complete a flag's value.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag's name is misspelt here
	}
}
