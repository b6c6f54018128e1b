module assay.dev/assay/tools/fulcio

go 1.26.0
