package main

import (
	"encoding/json"
	"fmt"
	"io"

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

// complete has the shell complete a flag's value.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag's name is misspelt here
	}
}
