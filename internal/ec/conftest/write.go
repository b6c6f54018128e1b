package conftest

import (
	"errors"
	"io"
	"os"

	"github.com/open-policy-agent/conftest/output"
	"github.com/open-policy-agent/conftest/parser"
)

// Form says how results are written.
type Form struct {
	// Name is one of Forms; any other name is stdout's.
	Name                                            string
	NoColor, SuppressExceptions, Trace, HideInJUnit bool
}

// Forms are the names of forms.
func Forms() []string { return output.Outputs() }

// DefaultForm is the name of the one for people.
const DefaultForm = output.OutputStandard

// Parsers are the names of parsers.
func Parsers() []string { return parser.Parsers() }

// Write writes results. Traces go to the process's standard error.
func Write(to io.Writer, list Results, f Form) error {
	file, direct := to.(*os.File)
	if !direct {
		// conftest writes to files only.
		var err error
		if file, err = os.CreateTemp("", "ec-test"); err != nil {
			return err
		}
		defer file.Close()
		if err := os.Remove(file.Name()); err != nil {
			return err
		}
	}
	err := output.Get(f.Name, output.Options{
		NoColor: f.NoColor, SuppressExceptions: f.SuppressExceptions, Tracing: f.Trace, JUnitHideMessage: f.HideInJUnit, File: file,
	}).Output(list)
	if direct {
		return err
	}
	if _, serr := file.Seek(0, io.SeekStart); serr != nil {
		return errors.Join(err, serr)
	}
	_, cerr := io.Copy(to, file)
	return errors.Join(err, cerr)
}
