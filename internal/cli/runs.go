package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/launch"
	"assay.dev/assay/ledger"
)

func (a *app) runsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "runs [RUN]",
		Short: "List the runs of the ledger, or show the facts of one",
		Long: `Lists every run that was ever opened here and how it ended: succeeded, failed or
lost. With a run's id it prints the run's facts. The chain of hashes is verified
on every reading; a run whose file was altered is listed as corrupt.`,
		Example: "  assay runs\n  assay runs 5c5a… --output json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			h, _, err := findHome()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				rec, err := ledger.Read(h.Ledger(), args[0])
				if err != nil {
					return err
				}
				return a.showRun(rec)
			}
			list, err := ledger.List(h.Ledger())
			if err != nil {
				return err
			}
			if a.output == "json" {
				if list == nil {
					list = []ledger.Summary{}
				}
				return a.json(list)
			}
			if len(list) == 0 {
				fmt.Fprintf(a.err, "assay: no run was ever opened in %s; start one with `assay run -f FILE`\n", h.Dir)
				return nil
			}
			w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "RUN\tOPENED\tTOOK\tOUTCOME\tSIGNED\tREASON")
			for _, s := range list {
				took := ""
				if !s.Closed.IsZero() {
					took = s.Closed.Sub(s.Opened).Round(100 * time.Millisecond).String()
				}
				signed := "no"
				if s.Signed {
					signed = "yes"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Run, s.Opened.Local().Format(time.DateTime), took, s.Outcome, signed, s.Reason)
			}
			return w.Flush()
		},
	}
	c.AddCommand(&cobra.Command{
		Use:   "attest RUN",
		Short: "Attest a run that succeeded and was not signed",
		Long: `Has the observer state, sign and store what it has not yet for a run that ended
before, for example since the registry was down. What was stored already is not
stored twice.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json", "yaml"); err != nil {
				return err
			}
			h, _, err := findHome()
			if err != nil {
				return err
			}
			s, err := launch.Start(cmd.Context(), h, launch.Options{Runs: true, Wait: time.Minute})
			if err != nil {
				return err
			}
			res, err := s.Attest(cmd.Context(), args[0])
			if cerr := s.Close(); err == nil {
				err = cerr
			}
			return a.ran(res, err)
		},
	})
	return c
}

func (a *app) showRun(rec *ledger.Record) error {
	if a.output == "json" {
		return a.json(rec.Entries)
	}
	for _, e := range rec.Entries {
		body := e.Body
		const most = 240
		more := ""
		if len(body) > most {
			body, more = body[:most], "…"
		}
		fmt.Fprintf(a.out, "%4d  %s  %-14s %s%s\n", e.Seq, e.Time.Local().Format("15:04:05.000"), e.Type, body, more)
	}
	return nil
}
